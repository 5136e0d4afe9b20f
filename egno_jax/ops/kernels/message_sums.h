// The message sums of an E(n)-equivariant layer, and their reverse-mode derivative.
//
// For every time p and every edge from node j to node i, with r = x_i - x_j + shift:
//
//   u = h K_i + b_1,  v = h K_j                                          of every node
//   a = u_i + v_j + |r|^2 k + sum_d e_d K_d,      s = silu(a),
//   b = s K_2 + b_2,                              m = silu(b),
//   c = m K_3 + b_3,                              q = silu(c),     f = q . k_4 + b_4,
//
//   M_i = sum of m,  S_i = sum of r f  over the edges into i.
//
// Edges are processed in blocks of a few rows, so that the values of an edge stay in the cache;
// only sums over nodes reach memory. The derivative keeps u and v and recomputes s, m and q. The
// order of summation depends only on the number of threads.
//
// All widths are multiples of 16. Indices are clamped when values are read, and edges out of range
// are dropped when sums are written, as in the specification in JAX.

#ifndef EGNO_JAX_OPS_KERNELS_MESSAGE_SUMS_H_
#define EGNO_JAX_OPS_KERNELS_MESSAGE_SUMS_H_

#include "base.h"
#include "edges.h"

namespace egno::message_sums {

// The operands in the order of cpu.py. Gradients of the floating ones have the same positions.
enum Operand : size_t {
  kEdgeFeatures,     // e [E, D]
  kEdgeShifts,       // [E, 3], or [0, 3] if there are none
  kFeatures,         // h [P, N, A]
  kMessageBias1,     // b_1
  kMessageKernel1,   // [1 + 2 A + D, C], with the rows k, K_i, K_j and K_d
  kMessageBias2,     // b_2
  kMessageKernel2,   // K_2 [C, C]
  kPositionBias1,    // b_3
  kPositionKernel1,  // K_3 [C, C]
  kPositionBias2,    // b_4 [1]
  kPositionKernel2,  // k_4 [C, 1]
  kPositions,        // x [P, N, 3]
  kReceivers,        // [E]
  kSenders,          // [E]
  // Of the derivative: what the function kept, and the cotangents of M and S.
  kKeptOfReceiver,
  kKeptOfSender,
  kMessagesCotangent,
  kStepsCotangent
};

enum FunctionResult : size_t { kMessages, kSteps, kOfReceiver, kOfSender };  // M, S, u, v

// Sizes and addresses of the operands.
struct Layer {
  int64_t times, nodes, edges, depth, width, edge_dim;
  const float *features, *positions, *edge_features, *edge_shifts;
  const float *of_distance, *of_receiver, *of_sender, *of_edge, *bias_1;
  const float *kernel_2, *bias_2, *kernel_3, *bias_3, *kernel_4, *bias_4;
  const int32_t *senders, *receivers;
  int64_t channels = 0;  // of vectors: none

  explicit Layer(const ffi::RemainingArgs& args)
      : times(Size(args, kFeatures, 0)),
        nodes(Size(args, kFeatures, 1)),
        edges(Size(args, kEdgeFeatures, 0)),
        depth(Size(args, kFeatures, 2)),
        width(Size(args, kMessageKernel1, 1)),
        edge_dim(Size(args, kEdgeFeatures, 1)),
        features(InData(args, kFeatures)),
        positions(InData(args, kPositions)),
        edge_features(InData(args, kEdgeFeatures)),
        edge_shifts(Size(args, kEdgeShifts, 0) > 0 ? InData(args, kEdgeShifts) : nullptr),
        of_distance(InData(args, kMessageKernel1)),
        of_receiver(of_distance + width),
        of_sender(of_receiver + depth * width),
        of_edge(of_sender + depth * width),
        bias_1(InData(args, kMessageBias1)),
        kernel_2(InData(args, kMessageKernel2)),
        bias_2(InData(args, kMessageBias2)),
        kernel_3(InData(args, kPositionKernel1)),
        bias_3(InData(args, kPositionBias1)),
        kernel_4(InData(args, kPositionKernel2)),
        bias_4(InData(args, kPositionBias2)),
        senders(Indices(args, kSenders)),
        receivers(Indices(args, kReceivers)) {}

  int64_t blocks() const { return NumBlocks(edges); }
  int64_t node_rows() const { return times * nodes; }
};

// u and v of all nodes at all times, `[P, N, C]` each.
template <typename Float>
struct NodeTerms {
  Float *u, *v;
};

inline void ComputeNodeTerms(ffi::ThreadPool& pool, const Layer& layer, const float* zeros,
                             NodeTerms<float> terms) {
  const int64_t depth = layer.depth, width = layer.width;
  const int64_t count = NumTasks(pool, NumBlocks(layer.node_rows()));
  ParallelRows(pool, count, layer.node_rows(), [&](int64_t, int64_t first, int64_t rows) {
    const float* h = layer.features + first * depth;
    Linear(h, layer.of_receiver, layer.bias_1, rows, depth, width, terms.u + first * width);
    Multiply(h, layer.of_sender, rows, depth, width, zeros, terms.v + first * width);
  });
}

// The activations of a block, and their slopes.
struct Rows {
  float *s, *m, *q, *slope_s, *slope_m, *slope_q;

  Rows(Scratch& scratch, int64_t size, bool with_slopes)
      : s(scratch.take(size)),
        m(scratch.take(size)),
        q(scratch.take(size)),
        slope_s(with_slopes ? scratch.take(size) : nullptr),
        slope_m(with_slopes ? scratch.take(size) : nullptr),
        slope_q(with_slopes ? scratch.take(size) : nullptr) {}
};

template <bool kWithSlopes>
void Forward(const Layer& layer, const NodeTerms<const float>& terms, const Block& block,
             const Rows& rows) {
  const int64_t width = layer.width, first_node = block.time * layer.nodes;
  for (int64_t row = 0; row < block.rows; ++row) {
    const float* u = terms.u + (first_node + block.receiver[row]) * width;
    const float* v = terms.v + (first_node + block.sender[row]) * width;
    const float* e = layer.edge_features + (block.first + row) * layer.edge_dim;
    for (int64_t k = 0; k < width; k += kLanes) {
      Vector a = Load(u + k) + Load(v + k) + block.distance[row] * Load(layer.of_distance + k);
      for (int64_t d = 0; d < layer.edge_dim; ++d) a += e[d] * Load(layer.of_edge + d * width + k);
      Store(rows.s + row * width + k, a);
    }
  }
  Activate<kWithSlopes>(rows.s, rows.slope_s, block.rows * width);
  Linear(rows.s, layer.kernel_2, layer.bias_2, block.rows, width, width, rows.m);
  Activate<kWithSlopes>(rows.m, rows.slope_m, block.rows * width);
  Linear(rows.m, layer.kernel_3, layer.bias_3, block.rows, width, width, rows.q);
  Activate<kWithSlopes>(rows.q, rows.slope_q, block.rows * width);
}

inline float Coefficient(const Layer& layer, const float* q) {
  return Dot(q, layer.kernel_4, layer.width) + layer.bias_4[0];
}

inline void AddMessages(const Layer& layer, const Block& block, const Rows& rows, NodeSums sums) {
  const int64_t width = layer.width;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t i = block.target[row];
    if (i < 0) continue;
    const float* m = rows.m + row * width;
    for (int64_t k = 0; k < width; k += kLanes) Add(sums.features + i * width + k, Load(m + k));
    const float f = Coefficient(layer, rows.q + row * width);
    for (int axis = 0; axis < 3; ++axis)
      sums.positions[3 * i + axis] += block.difference[row][axis] * f;
  }
}

// Results: `FunctionResult`; u and v are for the derivative.
inline void Compute(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t size = kBlock * layer.width;
  Scratch shared(layer.width);
  float *of_receiver = OutData(rets, kOfReceiver), *of_sender = OutData(rets, kOfSender);
  const NodeTerms<const float> terms = {of_receiver, of_sender};
  ComputeNodeTerms(pool, layer, shared.take_zeros(layer.width), {of_receiver, of_sender});

  const int64_t count = NumTasks(pool, layer.times * layer.blocks());
  std::vector<std::unique_ptr<Scratch>> scratch(count);
  std::vector<Rows> rows;
  for (auto& own : scratch) {
    own = std::make_unique<Scratch>(3 * size);
    rows.emplace_back(*own, size, false);
  }
  SumOverNodes(pool, layer, count, {OutData(rets, kMessages), nullptr, OutData(rets, kSteps), nullptr},
               [&](int64_t task, const Block& block, NodeSums sums) {
                 Forward<false>(layer, terms, block, rows[task]);
                 AddMessages(layer, block, rows[task], sums);
               });
}

// ---- The derivative ----

// The gradients with respect to the weights, summed by one task.
struct WeightSums {
  float *kernel_1, *bias_1, *kernel_2, *bias_2, *kernel_3, *bias_3, *kernel_4, *bias_4;

  static int64_t size(const Layer& layer) {
    const int64_t rows_1 = 1 + 2 * layer.depth + layer.edge_dim;
    return (rows_1 + 2 * layer.width + 4) * layer.width + 1;
  }
  WeightSums(const Layer& layer, Scratch& scratch)
      : kernel_1(scratch.take_zeros((1 + 2 * layer.depth + layer.edge_dim) * layer.width)),
        bias_1(scratch.take_zeros(layer.width)),
        kernel_2(scratch.take_zeros(layer.width * layer.width)),
        bias_2(scratch.take_zeros(layer.width)),
        kernel_3(scratch.take_zeros(layer.width * layer.width)),
        bias_3(scratch.take_zeros(layer.width)),
        kernel_4(scratch.take_zeros(layer.width)),
        bias_4(scratch.take_zeros(1)) {}
};

// Read by all tasks: the cotangents of M and S, and transposed kernels.
struct Shared {
  const float *d_messages, *d_steps, *zeros;
  float *kernel_2_transposed, *kernel_3_transposed;
  float *of_receiver_transposed, *of_sender_transposed;
};

// d_c, written over slope_q, and the coefficients f.
inline void DescendCoefficients(const Layer& layer, const float* d_steps, const Block& block,
                                const Rows& rows, WeightSums& weights, float* coefficients) {
  const int64_t width = layer.width;
  float d_f[kBlock];
  for (int64_t row = 0; row < block.rows; ++row) {
    coefficients[row] = Coefficient(layer, rows.q + row * width);
    const int64_t i = block.target[row];
    d_f[row] = 0;
    for (int axis = 0; axis < 3 && i >= 0; ++axis)
      d_f[row] += block.difference[row][axis] * d_steps[3 * i + axis];
    weights.bias_4[0] += d_f[row];
  }
  for (int64_t k = 0; k < width; k += kLanes) {
    const Vector kernel = Load(layer.kernel_4 + k);
    Vector d_kernel{}, d_bias{};
    for (int64_t row = 0; row < block.rows; ++row) {
      float* slope = rows.slope_q + row * width + k;
      const Vector d_c = d_f[row] * kernel * Load(slope);
      d_kernel += d_f[row] * Load(rows.q + row * width + k);
      d_bias += d_c;
      Store(slope, d_c);
    }
    Add(weights.kernel_4 + k, d_kernel);
    Add(weights.bias_3 + k, d_bias);
  }
}

// d_b, written over slope_m, from the gradients of m by the coefficients and by the sum.
inline void DescendMessages(const Layer& layer, const Shared& shared, const Block& block,
                            const Rows& rows, const float* d_m, WeightSums& weights) {
  const int64_t width = layer.width;
  const float* d_messages = shared.d_messages + block.time * layer.nodes * width;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t i = block.target[row];
    const float* d_sum = i < 0 ? shared.zeros : d_messages + i * width;
    float* slope = rows.slope_m + row * width;
    for (int64_t k = 0; k < width; k += kLanes)
      Store(slope + k, (Load(d_m + row * width + k) + Load(d_sum + k)) * Load(slope + k));
  }
  AddColumns(weights.bias_2, rows.slope_m, block.rows, width);
}

// d_a, written over d_s, and from it the gradients of nodes, distances and edge features.
inline void DescendInputs(const Layer& layer, const float* d_steps, const Block& block,
                          const Rows& rows, float* d_s, const float* coefficients,
                          WeightSums& weights, NodeSums sums, EdgeGradients d_edges) {
  const int64_t width = layer.width;
  for (int64_t row = 0; row < block.rows; ++row) {
    float *d_a = d_s + row * width, *slope = rows.slope_s + row * width;
    float* d_u = sums.features + block.receiver[row] * width;
    float* d_v = sums.others + block.sender[row] * width;
    Vector along_distance{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Vector d = Load(d_a + k) * Load(slope + k);
      Store(d_a + k, d);
      Add(d_u + k, d);
      Add(d_v + k, d);
      along_distance += d * Load(layer.of_distance + k);
    }
    const float d_distance = 2 * Sum(along_distance);
    const int64_t i = block.target[row];
    for (int axis = 0; axis < 3; ++axis) {
      float d_r = d_distance * block.difference[row][axis];
      if (i >= 0) d_r += coefficients[row] * d_steps[3 * i + axis];
      sums.positions[3 * block.receiver[row] + axis] += d_r;
      sums.positions[3 * block.sender[row] + axis] -= d_r;
      if (d_edges.shifts) d_edges.shifts[3 * (block.first + row) + axis] = d_r;
    }
    for (int64_t d = 0; d_edges.features && d < layer.edge_dim; ++d)
      d_edges.features[(block.first + row) * layer.edge_dim + d] =
          Dot(d_a, layer.of_edge + d * width, width);
  }
  // The rows of kernel_1 for distance and edge features.
  for (int64_t d = -1; d < layer.edge_dim; ++d) {
    float* to = weights.kernel_1 + (d < 0 ? 0 : 1 + 2 * layer.depth + d) * width;
    const float* e = layer.edge_features + block.first * layer.edge_dim;
    for (int64_t k = 0; k < width; k += kLanes) {
      Vector sum{};
      for (int64_t row = 0; row < block.rows; ++row)
        sum += (d < 0 ? block.distance[row] : e[row * layer.edge_dim + d]) *
               Load(d_s + row * width + k);
      Add(to + k, sum);
    }
  }
}

inline void Backward(const Layer& layer, const Shared& shared, const Block& block, const Rows& rows,
                     WeightSums& weights, NodeSums sums, EdgeGradients d_edges) {
  const int64_t width = layer.width;
  const float* d_steps = shared.d_steps + block.time * layer.nodes * 3;
  float coefficients[kBlock];
  DescendCoefficients(layer, d_steps, block, rows, weights, coefficients);
  const float* d_c = rows.slope_q;
  AddOuter(rows.m, d_c, block.rows, width, width, weights.kernel_3);
  float* d_m = rows.q;
  Multiply(d_c, shared.kernel_3_transposed, block.rows, width, width, shared.zeros, d_m);
  DescendMessages(layer, shared, block, rows, d_m, weights);
  const float* d_b = rows.slope_m;
  AddOuter(rows.s, d_b, block.rows, width, width, weights.kernel_2);
  float* d_s = rows.q;
  Multiply(d_b, shared.kernel_2_transposed, block.rows, width, width, shared.zeros, d_s);
  DescendInputs(layer, d_steps, block, rows, d_s, coefficients, weights, sums, d_edges);
}

// From the gradients of u and v to those of the features, K_i, K_j and b_1.
inline void DescendNodeTerms(ffi::ThreadPool& pool, const Layer& layer, int64_t count,
                             const Shared& shared, NodeTerms<const float> d_terms,
                             std::vector<Carried<WeightSums>>& weights, float* d_features) {
  const int64_t depth = layer.depth, width = layer.width;
  ParallelRows(pool, count, layer.node_rows(), [&](int64_t task, int64_t first, int64_t rows) {
    const float *h = layer.features + first * depth, *d_u = d_terms.u + first * width,
                *d_v = d_terms.v + first * width;
    WeightSums& sums = weights[task].next();
    float *d_h = d_features + first * depth, *d_kernel = sums.kernel_1 + width;
    Multiply(d_u, shared.of_receiver_transposed, rows, width, depth, shared.zeros, d_h);
    MultiplyAdd(d_v, shared.of_sender_transposed, rows, width, depth, d_h);
    AddOuter(h, d_u, rows, depth, width, d_kernel);
    AddOuter(h, d_v, rows, depth, width, d_kernel + depth * width);
    AddColumns(sums.bias_1, d_u, rows, width);
  });
}

// Results: the gradients of the floating operands; those of e and of the shifts are [P, E, D] and
// [P, E, 3], or empty if not wanted.
inline void ComputeVjp(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t depth = layer.depth, width = layer.width, size = kBlock * width;
  const int64_t node_size = layer.node_rows() * width, square = width * width;
  Scratch scratch(2 * node_size + 2 * square + 2 * depth * width + std::max(width, depth));
  const NodeTerms<const float> terms = {InData(args, kKeptOfReceiver),
                                        InData(args, kKeptOfSender)};
  const NodeTerms<float> d_terms = {scratch.take(node_size), scratch.take(node_size)};
  const Shared shared = {InData(args, kMessagesCotangent),
                         InData(args, kStepsCotangent),
                         scratch.take_zeros(std::max(width, depth)),
                         scratch.take(square),
                         scratch.take(square),
                         scratch.take(depth * width),
                         scratch.take(depth * width)};
  Transpose(layer.kernel_2, width, width, shared.kernel_2_transposed);
  Transpose(layer.kernel_3, width, width, shared.kernel_3_transposed);
  Transpose(layer.of_receiver, depth, width, shared.of_receiver_transposed);
  Transpose(layer.of_sender, depth, width, shared.of_sender_transposed);

  const int64_t count = NumTasks(pool, layer.times * layer.blocks());
  std::vector<std::unique_ptr<Scratch>> own(count);
  std::vector<Carried<WeightSums>> weights;
  std::vector<Rows> rows;
  for (auto& place : own) {
    place = std::make_unique<Scratch>(Carried<WeightSums>::size(layer) + 6 * size);
    weights.emplace_back(layer, *place);
    rows.emplace_back(*place, size, true);
  }
  SumOverNodes(pool, layer, count, {d_terms.u, d_terms.v, OutData(rets, kPositions), nullptr},
               [&](int64_t task, const Block& block, NodeSums sums) {
                 const EdgeGradients d_edges(layer, rets, kEdgeFeatures, kEdgeShifts, block.time);
                 Forward<true>(layer, terms, block, rows[task]);
                 Backward(layer, shared, block, rows[task], weights[task].next(), sums, d_edges);
               });
  DescendNodeTerms(pool, layer, count, shared, {d_terms.u, d_terms.v}, weights,
                   OutData(rets, kFeatures));
  for (auto& sums : weights) sums.Carry();
  Gather(weights, &WeightSums::kernel_1, Out(rets, kMessageKernel1));
  Gather(weights, &WeightSums::bias_1, Out(rets, kMessageBias1));
  Gather(weights, &WeightSums::kernel_2, Out(rets, kMessageKernel2));
  Gather(weights, &WeightSums::bias_2, Out(rets, kMessageBias2));
  Gather(weights, &WeightSums::kernel_3, Out(rets, kPositionKernel1));
  Gather(weights, &WeightSums::bias_3, Out(rets, kPositionBias1));
  Gather(weights, &WeightSums::kernel_4, Out(rets, kPositionKernel2));
  Gather(weights, &WeightSums::bias_4, Out(rets, kPositionBias2));
}

}  // namespace egno::message_sums

#endif  // EGNO_JAX_OPS_KERNELS_MESSAGE_SUMS_H_
