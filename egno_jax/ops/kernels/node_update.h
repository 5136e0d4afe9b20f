// What an E(n)-equivariant layer does at a node, and the reverse-mode derivatives. For every row (a
// node at a time):
//
//   FeatureUpdate:    a = h K_h + M K_m + b_1,   s = silu(a),   y = s K_2 + b_2
//   VelocityFactor:   a = h K_1 + b_1,           s = silu(a),   f = s . k_2 + b_2
//
// Rows are taken in blocks that stay in the cache; the derivatives keep a. All widths but that of f
// are multiples of 16.

#ifndef EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
#define EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_

#include "base.h"

namespace egno::node_update {

// Both are two layers on up to two inputs; the second input of VelocityFactor has no columns.
struct Layer {
  int64_t rows, depth, message_depth, width, out_width;
  const float *features, *messages, *of_features, *of_messages, *bias_1, *kernel_2, *bias_2;
  size_t operands;

  Layer(const ffi::RemainingArgs& args, bool has_messages)
      : rows(Size(args, 0, 0) * Size(args, 0, 1)),
        depth(Size(args, 0, 2)),
        message_depth(has_messages ? Size(args, 1, 2) : 0),
        operands(has_messages ? 6 : 5) {
    size_t next = 0;
    features = InData(args, next++);
    messages = has_messages ? InData(args, next++) : nullptr;
    width = Size(args, next, 1);
    of_features = InData(args, next++);
    of_messages = of_features + depth * width;
    bias_1 = InData(args, next++);
    out_width = Size(args, next, 1);
    kernel_2 = InData(args, next++);
    bias_2 = InData(args, next);
  }
};

inline void FirstLayer(const Layer& layer, int64_t first, int64_t rows, float* a) {
  Linear(layer.features + first * layer.depth, layer.of_features, layer.bias_1, rows, layer.depth,
         layer.width, a);
  if (layer.messages)
    MultiplyAdd(layer.messages + first * layer.message_depth, layer.of_messages, rows,
                layer.message_depth, layer.width, a);
}

// Results: y or f, and for the derivative a.
template <bool kHasMessages>
void Compute(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args, kHasMessages);
  const int64_t count = NumTasks(pool, NumBlocks(layer.rows)), size = kBlock * layer.width;
  Scratch scratch(count * size);
  float *s = scratch.take(count * size), *out = OutData(rets, 0), *kept = OutData(rets, 1);
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

// s, its slope, and the cotangent of a, of one block.
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

// Further operands: a, and the cotangent of the result. Results: the gradients of the operands of
// `Compute` in their order.
template <bool kHasMessages>
void ComputeVjp(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args, kHasMessages);
  const float *kept = InData(args, layer.operands), *d_out = InData(args, layer.operands + 1);
  float* d_features = OutData(rets, 0);
  float* d_messages = kHasMessages ? OutData(rets, 1) : nullptr;
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
  const size_t first_weight = kHasMessages ? 2 : 1;
  Gather(weights, &WeightSums::kernel_1, Out(rets, first_weight));
  Gather(weights, &WeightSums::bias_1, Out(rets, first_weight + 1));
  Gather(weights, &WeightSums::kernel_2, Out(rets, first_weight + 2));
  Gather(weights, &WeightSums::bias_2, Out(rets, first_weight + 3));
}

}  // namespace egno::node_update

#endif  // EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
