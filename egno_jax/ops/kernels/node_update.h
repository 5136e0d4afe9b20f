// Node updates of an E(n)-equivariant layer, and their reverse-mode derivatives. For every row (one
// node at one time):
//
//   FeatureUpdate:    a = h K_h + M K_m + b_1,   s = silu(a),   y = s K_2 + b_2
//   VelocityFactor:   a = h K_1 + b_1,           s = silu(a),   f = s . k_2 + b_2
//
// Rows are processed in blocks that stay in the cache; the derivatives keep a. All widths except
// that of f are multiples of 16.

#ifndef EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
#define EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_

#include "base.h"

namespace egno::node_update {

// The operands in the order of cpu.py. Gradients have the same positions.
enum Operand : size_t {
  kFeatures,  // h [P, N, A]
  kMessages,  // M [P, N, B]; B = 0 for VelocityFactor
  kBias1,     // b_1
  kKernel1,   // [A + B, C], with the rows K_h and K_m
  kBias2,     // b_2
  kKernel2,   // [C, C_out]
  // Of the derivative: what the function kept, and the cotangent of the result.
  kKeptHidden,
  kCotangent
};

enum FunctionResult : size_t { kOut, kHidden };  // y or f, and a for the derivative

// Sizes and addresses of the operands.
struct Layer {
  int64_t rows, depth, message_depth, width, out_width;
  const float *features, *messages, *of_features, *of_messages, *bias_1, *kernel_2, *bias_2;

  explicit Layer(const ffi::RemainingArgs& args)
      : rows(Size(args, kFeatures, 0) * Size(args, kFeatures, 1)),
        depth(Size(args, kFeatures, 2)),
        message_depth(Size(args, kMessages, 2)),
        width(Size(args, kKernel1, 1)),
        out_width(Size(args, kKernel2, 1)),
        features(InData(args, kFeatures)),
        messages(InData(args, kMessages)),
        of_features(InData(args, kKernel1)),
        of_messages(of_features + depth * width),
        bias_1(InData(args, kBias1)),
        kernel_2(InData(args, kKernel2)),
        bias_2(InData(args, kBias2)) {}
};

inline void FirstLayer(const Layer& layer, int64_t first, int64_t rows, float* a) {
  Linear(layer.features + first * layer.depth, layer.of_features, layer.bias_1, rows, layer.depth,
         layer.width, a);
  if (layer.message_depth)
    MultiplyAdd(layer.messages + first * layer.message_depth, layer.of_messages, rows,
                layer.message_depth, layer.width, a);
}

// Results: `FunctionResult`.
template <bool kHasMessages>
void Compute(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t count = NumTasks(pool, NumBlocks(layer.rows)), size = kBlock * layer.width;
  Scratch scratch(count * size);
  float *s = scratch.take(count * size), *out = OutData(rets, kOut), *kept = OutData(rets, kHidden);
  ParallelRows(pool, count, layer.rows, [&](int64_t task, int64_t first, int64_t rows) {
    float *own_s = s + task * size, *own_a = kept + first * layer.width;
    FirstLayer(layer, first, rows, own_a);
    std::memcpy(own_s, own_a, sizeof(float) * rows * layer.width);
    Activate<false>(own_s, nullptr, rows * layer.width);
    if (kHasMessages) {
      Linear(own_s, layer.kernel_2, layer.bias_2, rows, layer.width, layer.out_width,
             out + first * layer.out_width);
      return;
    }
    for (int64_t row = 0; row < rows; ++row)
      out[first + row] =
          Dot(own_s + row * layer.width, layer.kernel_2, layer.width) + layer.bias_2[0];
  });
}

// ---- The derivatives ----

struct WeightSums {
  float *kernel_1, *bias_1, *kernel_2, *bias_2;

  static int64_t size(const Layer& layer) {
    return (layer.depth + layer.message_depth + 1) * layer.width +
           (layer.width + 1) * layer.out_width;
  }
  WeightSums(const Layer& layer, Scratch& scratch)
      : kernel_1(scratch.take_zeros((layer.depth + layer.message_depth) * layer.width)),
        bias_1(scratch.take_zeros(layer.width)),
        kernel_2(scratch.take_zeros(layer.width * layer.out_width)),
        bias_2(scratch.take_zeros(layer.out_width)) {}
};

// The kernels that carry gradients down, and a row of zeros.
struct Transposed {
  float *of_features, *of_messages, *kernel_2, *zeros;

  static int64_t widest(const Layer& layer) {
    return std::max({layer.depth, layer.message_depth, layer.width});
  }
  static int64_t size(const Layer& layer) {
    return (layer.depth + layer.message_depth + layer.out_width) * layer.width + widest(layer);
  }
  Transposed(const Layer& layer, Scratch& scratch)
      : of_features(scratch.take(layer.depth * layer.width)),
        of_messages(scratch.take(layer.message_depth * layer.width)),
        kernel_2(scratch.take(layer.width * layer.out_width)),
        zeros(scratch.take_zeros(widest(layer))) {
    Transpose(layer.of_features, layer.depth, layer.width, of_features);
    Transpose(layer.of_messages, layer.message_depth, layer.width, of_messages);
    Transpose(layer.kernel_2, layer.width, layer.out_width, kernel_2);
  }
};

// For one block: s, its slope, and the cotangent of a.
struct Rows {
  float *s, *slope, *d_a;

  static int64_t size(const Layer& layer) { return 3 * kBlock * layer.width; }
  Rows(const Layer& layer, Scratch& scratch)
      : s(scratch.take(kBlock * layer.width)),
        slope(scratch.take(kBlock * layer.width)),
        d_a(scratch.take(kBlock * layer.width)) {}
};

// The second layer of FeatureUpdate, down to d_a.
inline void DescendWide(const Layer& layer, const Transposed& transposed, const float* d_out,
                        int64_t count, const Rows& rows, WeightSums& weights) {
  AddOuter(rows.s, d_out, count, layer.width, layer.out_width, weights.kernel_2);
  AddColumns(weights.bias_2, d_out, count, layer.out_width);
  Multiply(d_out, transposed.kernel_2, count, layer.out_width, layer.width, transposed.zeros,
           rows.d_a);
  for (int64_t k = 0; k < count * layer.width; k += kLanes)
    Store(rows.d_a + k, Load(rows.d_a + k) * Load(rows.slope + k));
}

// The second layer of VelocityFactor, down to d_a.
inline void DescendNarrow(const Layer& layer, const float* d_out, int64_t count, const Rows& rows,
                          WeightSums& weights) {
  for (int64_t row = 0; row < count; ++row) weights.bias_2[0] += d_out[row];
  for (int64_t k = 0; k < layer.width; k += kLanes) {
    const Vector kernel = Load(layer.kernel_2 + k);
    Vector d_kernel{};
    for (int64_t row = 0; row < count; ++row) {
      const int64_t at = row * layer.width + k;
      d_kernel += d_out[row] * Load(rows.s + at);
      Store(rows.d_a + at, d_out[row] * kernel * Load(rows.slope + at));
    }
    Add(weights.kernel_2 + k, d_kernel);
  }
}

// Results: the gradients of all operands of `Compute`.
template <bool kHasMessages>
void ComputeVjp(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const float *kept = InData(args, kKeptHidden), *d_out = InData(args, kCotangent);
  float *d_features = OutData(rets, kFeatures), *d_messages = OutData(rets, kMessages);
  const int64_t depth = layer.depth, width = layer.width, message_depth = layer.message_depth;
  Scratch shared(Transposed::size(layer));
  const Transposed transposed(layer, shared);
  const int64_t count = NumTasks(pool, NumBlocks(layer.rows));
  std::vector<std::unique_ptr<Scratch>> own(count);
  std::vector<Carried<WeightSums>> weights;
  std::vector<Rows> blocks;
  for (auto& place : own) {
    place = std::make_unique<Scratch>(Carried<WeightSums>::size(layer) + Rows::size(layer));
    weights.emplace_back(layer, *place);
    blocks.emplace_back(layer, *place);
  }
  ParallelRows(pool, count, layer.rows, [&](int64_t task, int64_t first, int64_t rows) {
    const Rows& block = blocks[task];
    WeightSums& sums = weights[task].next();
    std::memcpy(block.s, kept + first * width, sizeof(float) * rows * width);
    Activate<true>(block.s, block.slope, rows * width);
    const float* own_d_out = d_out + first * layer.out_width;
    if (kHasMessages)
      DescendWide(layer, transposed, own_d_out, rows, block, sums);
    else
      DescendNarrow(layer, own_d_out, rows, block, sums);
    AddColumns(sums.bias_1, block.d_a, rows, width);
    AddOuter(layer.features + first * depth, block.d_a, rows, depth, width, sums.kernel_1);
    Multiply(block.d_a, transposed.of_features, rows, width, depth, transposed.zeros,
             d_features + first * depth);
    if (!kHasMessages) return;
    AddOuter(layer.messages + first * message_depth, block.d_a, rows, message_depth, width,
             sums.kernel_1 + depth * width);
    Multiply(block.d_a, transposed.of_messages, rows, width, message_depth, transposed.zeros,
             d_messages + first * message_depth);
  });
  for (auto& sums : weights) sums.Carry();
  Gather(weights, &WeightSums::kernel_1, Out(rets, kKernel1));
  Gather(weights, &WeightSums::bias_1, Out(rets, kBias1));
  Gather(weights, &WeightSums::kernel_2, Out(rets, kKernel2));
  Gather(weights, &WeightSums::bias_2, Out(rets, kBias2));
}

}  // namespace egno::node_update

#endif  // EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
