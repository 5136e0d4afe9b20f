// What an E(n)-equivariant layer does at a node once its messages are summed, and the reverse-mode
// derivative. For every row (a node at a time):
//
//   a = h K_h + M K_m + b_1,   s = silu(a),   y = s K_2 + b_2      the new features
//   c = h K_v + b_3,           q = silu(c),   f = q . k_4 + b_4    the factor of the velocity
//
// Rows are taken in blocks that stay in the cache; the derivative keeps a and c. All widths
// are multiples of 16.

#ifndef EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
#define EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_

#include "base.h"

namespace egno::node_update {

struct Arguments {
  Buffer features, messages;
  Buffer kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3, kernel_4, bias_4;
};

// Sizes and addresses. kernel_1 [A + B, C] holds K_h and K_m, kernel_3 [A, H] is K_v.
struct Layer {
  int64_t rows, depth, message_depth, width, out_width, speed_width;
  const float *features, *messages, *of_features, *of_messages;
  const float *bias_1, *kernel_2, *bias_2, *kernel_3, *bias_3, *kernel_4, *bias_4;

  explicit Layer(const Arguments& args)
      : rows(args.features.dimensions()[0] * args.features.dimensions()[1]),
        depth(args.features.dimensions()[2]),
        message_depth(args.messages.dimensions()[2]),
        width(args.kernel_1.dimensions()[1]),
        out_width(args.kernel_2.dimensions()[1]),
        speed_width(args.kernel_3.dimensions()[1]),
        features(args.features.typed_data()),
        messages(args.messages.typed_data()),
        of_features(args.kernel_1.typed_data()),
        of_messages(of_features + depth * width),
        bias_1(args.bias_1.typed_data()),
        kernel_2(args.kernel_2.typed_data()),
        bias_2(args.bias_2.typed_data()),
        kernel_3(args.kernel_3.typed_data()),
        bias_3(args.bias_3.typed_data()),
        kernel_4(args.kernel_4.typed_data()),
        bias_4(args.bias_4.typed_data()) {}
};

struct Rows {
  float *s, *q, *slope_s, *slope_q, *d_s;

  Rows(const Layer& layer, Scratch& scratch)
      : s(scratch.take(kBlock * layer.width)),
        q(scratch.take(kBlock * layer.speed_width)),
        slope_s(scratch.take(kBlock * layer.width)),
        slope_q(scratch.take(kBlock * layer.speed_width)),
        d_s(scratch.take(kBlock * layer.width)) {}

  static int64_t size(const Layer& layer) {
    return kBlock * (3 * layer.width + 2 * layer.speed_width);
  }
};

// s and q of a block from a and c, and with kWithSlopes the slopes.
template <bool kWithSlopes>
void ActivateRows(const Layer& layer, int64_t first, int64_t count, const float* a, const float* c,
                  const Rows& rows) {
  std::memcpy(rows.s, a + first * layer.width, sizeof(float) * count * layer.width);
  std::memcpy(rows.q, c + first * layer.speed_width, sizeof(float) * count * layer.speed_width);
  Activate<kWithSlopes>(rows.s, rows.slope_s, count * layer.width);
  Activate<kWithSlopes>(rows.q, rows.slope_q, count * layer.speed_width);
}

inline ffi::Error Compute(ffi::ThreadPool pool, const Arguments& args, Result new_features,
                          Result factors, Result a, Result c) {
  const Layer layer(args);
  const int64_t count = NumTasks(pool, NumBlocks(layer.rows));
  std::vector<std::unique_ptr<Scratch>> own(count);
  std::vector<Rows> scratch;
  for (auto& place : own) {
    place = std::make_unique<Scratch>(Rows::size(layer));
    scratch.emplace_back(layer, *place);
  }
  ParallelRows(pool, count, layer.rows, [&](int64_t task, int64_t first, int64_t rows) {
    const Rows& block = scratch[task];
    const float* h = layer.features + first * layer.depth;
    const float* m = layer.messages + first * layer.message_depth;
    float* own_a = a->typed_data() + first * layer.width;
    float* own_c = c->typed_data() + first * layer.speed_width;
    Linear(h, layer.of_features, layer.bias_1, rows, layer.depth, layer.width, own_a);
    MultiplyAdd(m, layer.of_messages, rows, layer.message_depth, layer.width, own_a);
    Linear(h, layer.kernel_3, layer.bias_3, rows, layer.depth, layer.speed_width, own_c);
    ActivateRows<false>(layer, first, rows, a->typed_data(), c->typed_data(), block);
    Linear(block.s, layer.kernel_2, layer.bias_2, rows, layer.width, layer.out_width,
           new_features->typed_data() + first * layer.out_width);
    for (int64_t row = 0; row < rows; ++row)
      factors->typed_data()[first + row] =
          Dot(block.q + row * layer.speed_width, layer.kernel_4, layer.speed_width) +
          layer.bias_4[0];
  });
  return ffi::Error::Success();
}

// ---- The derivative ----

struct WeightSums {
  float *kernel_1, *bias_1, *kernel_2, *bias_2, *kernel_3, *bias_3, *kernel_4, *bias_4;

  static int64_t size(const Layer& layer) {
    return (layer.depth + layer.message_depth + 1) * layer.width +
           (layer.width + 1) * layer.out_width + (layer.depth + 2) * layer.speed_width + 1;
  }
  WeightSums(const Layer& layer, Scratch& scratch)
      : kernel_1(scratch.take_zeros((layer.depth + layer.message_depth) * layer.width)),
        bias_1(scratch.take_zeros(layer.width)),
        kernel_2(scratch.take_zeros(layer.width * layer.out_width)),
        bias_2(scratch.take_zeros(layer.out_width)),
        kernel_3(scratch.take_zeros(layer.depth * layer.speed_width)),
        bias_3(scratch.take_zeros(layer.speed_width)),
        kernel_4(scratch.take_zeros(layer.speed_width)),
        bias_4(scratch.take_zeros(1)) {}
};

// The kernels that carry gradients down, and a row of zeros.
struct Transposed {
  float *of_features, *of_messages, *kernel_2, *kernel_3, *zeros;

  static int64_t size(const Layer& layer) {
    return (layer.depth + layer.message_depth + layer.out_width) * layer.width +
           layer.depth * layer.speed_width + widest(layer);
  }
  static int64_t widest(const Layer& layer) {
    return std::max({layer.depth, layer.message_depth, layer.width});
  }
  Transposed(const Layer& layer, Scratch& scratch)
      : of_features(scratch.take(layer.depth * layer.width)),
        of_messages(scratch.take(layer.message_depth * layer.width)),
        kernel_2(scratch.take(layer.width * layer.out_width)),
        kernel_3(scratch.take(layer.depth * layer.speed_width)),
        zeros(scratch.take_zeros(widest(layer))) {
    Transpose(layer.of_features, layer.depth, layer.width, of_features);
    Transpose(layer.of_messages, layer.message_depth, layer.width, of_messages);
    Transpose(layer.kernel_2, layer.width, layer.out_width, kernel_2);
    Transpose(layer.kernel_3, layer.depth, layer.speed_width, kernel_3);
  }
};

struct Gradients {
  Result features, messages;
  Result kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3, kernel_4, bias_4;
};

// From the new features down to h and M.
inline void DescendFeatures(const Layer& layer, const Transposed& transposed, const float* d_new,
                            int64_t first, int64_t count, const Rows& rows, WeightSums& weights,
                            float* d_h, float* d_m) {
  const int64_t width = layer.width, depth = layer.depth, message_depth = layer.message_depth;
  AddOuter(rows.s, d_new, count, width, layer.out_width, weights.kernel_2);
  AddColumns(weights.bias_2, d_new, count, layer.out_width);
  Multiply(d_new, transposed.kernel_2, count, layer.out_width, width, transposed.zeros, rows.d_s);
  for (int64_t k = 0; k < count * width; k += kLanes)
    Store(rows.d_s + k, Load(rows.d_s + k) * Load(rows.slope_s + k));
  const float* d_a = rows.d_s;
  AddColumns(weights.bias_1, d_a, count, width);
  AddOuter(layer.features + first * depth, d_a, count, depth, width, weights.kernel_1);
  AddOuter(layer.messages + first * message_depth, d_a, count, message_depth, width,
           weights.kernel_1 + depth * width);
  Multiply(d_a, transposed.of_features, count, width, depth, transposed.zeros, d_h);
  Multiply(d_a, transposed.of_messages, count, width, message_depth, transposed.zeros, d_m);
}

// From the factors down to h, added to what is there.
inline void DescendFactors(const Layer& layer, const Transposed& transposed, const float* d_factors,
                           int64_t first, int64_t count, const Rows& rows, WeightSums& weights,
                           float* d_h) {
  const int64_t width = layer.speed_width;
  for (int64_t row = 0; row < count; ++row) weights.bias_4[0] += d_factors[row];
  for (int64_t k = 0; k < width; k += kLanes) {
    const Vector kernel = Load(layer.kernel_4 + k);
    Vector d_kernel{}, d_bias{};
    for (int64_t row = 0; row < count; ++row) {
      float* slope = rows.slope_q + row * width + k;
      const Vector d_c = d_factors[row] * kernel * Load(slope);
      d_kernel += d_factors[row] * Load(rows.q + row * width + k);
      d_bias += d_c;
      Store(slope, d_c);
    }
    Add(weights.kernel_4 + k, d_kernel);
    Add(weights.bias_3 + k, d_bias);
  }
  const float* d_c = rows.slope_q;
  AddOuter(layer.features + first * layer.depth, d_c, count, layer.depth, width, weights.kernel_3);
  MultiplyAdd(d_c, transposed.kernel_3, count, width, layer.depth, d_h);
}

inline ffi::Error ComputeVjp(ffi::ThreadPool pool, const Arguments& args, Buffer a, Buffer c,
                             Buffer d_new_features, Buffer d_factors, Gradients out) {
  const Layer layer(args);
  Scratch shared(Transposed::size(layer));
  const Transposed transposed(layer, shared);
  const int64_t count = NumTasks(pool, NumBlocks(layer.rows));
  std::vector<std::unique_ptr<Scratch>> own(count);
  std::vector<WeightSums> weights;
  std::vector<Rows> scratch;
  for (auto& place : own) {
    place = std::make_unique<Scratch>(WeightSums::size(layer) + Rows::size(layer));
    weights.emplace_back(layer, *place);
    scratch.emplace_back(layer, *place);
  }
  ParallelRows(pool, count, layer.rows, [&](int64_t task, int64_t first, int64_t rows) {
    float* d_h = out.features->typed_data() + first * layer.depth;
    float* d_m = out.messages->typed_data() + first * layer.message_depth;
    ActivateRows<true>(layer, first, rows, a.typed_data(), c.typed_data(), scratch[task]);
    DescendFeatures(layer, transposed, d_new_features.typed_data() + first * layer.out_width, first,
                    rows, scratch[task], weights[task], d_h, d_m);
    DescendFactors(layer, transposed, d_factors.typed_data() + first, first, rows, scratch[task],
                   weights[task], d_h);
  });
  Gather(weights, &WeightSums::kernel_1, out.kernel_1);
  Gather(weights, &WeightSums::bias_1, out.bias_1);
  Gather(weights, &WeightSums::kernel_2, out.kernel_2);
  Gather(weights, &WeightSums::bias_2, out.bias_2);
  Gather(weights, &WeightSums::kernel_3, out.kernel_3);
  Gather(weights, &WeightSums::bias_3, out.bias_3);
  Gather(weights, &WeightSums::kernel_4, out.kernel_4);
  Gather(weights, &WeightSums::bias_4, out.bias_4);
  return ffi::Error::Success();
}

}  // namespace egno::node_update

#endif  // EGNO_JAX_OPS_KERNELS_NODE_UPDATE_H_
