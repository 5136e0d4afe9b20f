// The message sums of a layer that carries K vectors at each node, and their derivative.
//
// For every time p and every edge from node j to node i, with r = x_i - x_j + shift, D = V_i - V_j,
// and u and v of every node:
//
//   a = u_i + v_j + |r|^2 k + [|D|^2, r V_i, r V_j] K_v + sum_d e_d K_d,   s = silu(a),
//   b = s K_2 + b_2,   g = silu(b),   m = (g - mean g) / sqrt(var g + epsilon),
//   [alpha, beta] = m K_3 + b_3,      f = m . k_4 + b_4,
//
//   M_i = sum of m,  S_i = sum of r f,  U_i = sum of alpha r + beta D  over the edges into i.
//
// Blocks of edges, widths and indices are as in message_sums.h.

#ifndef EGNO_JAX_OPS_KERNELS_VECTOR_SUMS_H_
#define EGNO_JAX_OPS_KERNELS_VECTOR_SUMS_H_

#include <cmath>

#include "base.h"
#include "edges.h"

namespace egno::vector_sums {

// The operands in the order of cpu.py. Gradients of the floating ones have the same positions.
enum Operand : size_t {
  kEdgeFeatures,   // e [E, D]
  kEdgeShifts,     // [E, 3], or [0, 3] if there are none
  kOfReceivers,    // u [P, N, C]
  kOfSenders,      // v [P, N, C]
  kGateBias,       // b_3 [2 K]
  kGateKernel,     // K_3 [C, 2 K]
  kMessageBias,    // b_2 [C]
  kMessageKernel,  // K_2 [C, C]
  kOfDistance,     // k [C]
  kOfEdge,         // K_d [D, C]
  kOfInvariants,   // K_v [3 K, C]
  kStepBias,       // b_4 [1]
  kStepKernel,     // k_4 [C, 1]
  kVectors,        // V [P, N, 3, K]
  kPositions,      // x [P, N, 3]
  kReceivers,      // [E]
  kSenders,        // [E]
  // Of the derivative: the cotangents of M, S and U.
  kMessagesCotangent,
  kStepsCotangent,
  kVectorsCotangent
};

enum FunctionResult : size_t { kMessages, kSteps, kVectorSums };  // M, S, U

constexpr float kEpsilon = 1e-5f;  // EPSILON of vector_messages.py

struct Layer {
  int64_t times, nodes, edges, width, channels, edge_dim;
  const float *edge_features, *edge_shifts, *u, *v, *positions, *vectors;
  const float *of_distance, *of_edge, *of_invariants;
  const float *gate_bias, *gate_kernel, *message_bias, *message_kernel, *step_bias, *step_kernel;
  const int32_t *senders, *receivers;

  explicit Layer(const ffi::RemainingArgs& args)
      : times(Size(args, kOfReceivers, 0)),
        nodes(Size(args, kOfReceivers, 1)),
        edges(Size(args, kEdgeFeatures, 0)),
        width(Size(args, kOfReceivers, 2)),
        channels(Size(args, kVectors, 3)),
        edge_dim(Size(args, kEdgeFeatures, 1)),
        edge_features(InData(args, kEdgeFeatures)),
        edge_shifts(Size(args, kEdgeShifts, 0) > 0 ? InData(args, kEdgeShifts) : nullptr),
        u(InData(args, kOfReceivers)),
        v(InData(args, kOfSenders)),
        positions(InData(args, kPositions)),
        vectors(InData(args, kVectors)),
        of_distance(InData(args, kOfDistance)),
        of_edge(InData(args, kOfEdge)),
        of_invariants(InData(args, kOfInvariants)),
        gate_bias(InData(args, kGateBias)),
        gate_kernel(InData(args, kGateKernel)),
        message_bias(InData(args, kMessageBias)),
        message_kernel(InData(args, kMessageKernel)),
        step_bias(InData(args, kStepBias)),
        step_kernel(InData(args, kStepKernel)),
        senders(Indices(args, kSenders)),
        receivers(Indices(args, kReceivers)) {}

  int64_t blocks() const { return NumBlocks(edges); }
  int64_t gates() const { return 2 * channels; }
  int64_t invariants() const { return 3 * channels; }
};

// The values of a block that the derivative needs.
struct Rows {
  float *invariants, *s, *m, *gates, *slope_s, *slope_m, *deviation;

  static int64_t size(const Layer& layer) {
    return kBlock * (layer.invariants() + 4 * layer.width + layer.gates() + 1);
  }
  Rows(const Layer& layer, Scratch& scratch)
      : invariants(scratch.take(kBlock * layer.invariants())),
        s(scratch.take(kBlock * layer.width)),
        m(scratch.take(kBlock * layer.width)),
        gates(scratch.take(kBlock * layer.gates())),
        slope_s(scratch.take(kBlock * layer.width)),
        slope_m(scratch.take(kBlock * layer.width)),
        deviation(scratch.take(kBlock)) {}
};

// The vectors of the two nodes of an edge, of one axis.
inline const float* VectorsOf(const Layer& layer, const Block& block, int64_t node, int axis) {
  return layer.vectors + ((block.time * layer.nodes + node) * 3 + axis) * layer.channels;
}

inline void Invariants(const Layer& layer, const Block& block, float* out) {
  const int64_t channels = layer.channels;
  for (int64_t row = 0; row < block.rows; ++row, out += 3 * channels)
    for (int64_t k = 0; k < channels; k += kLanes) {
      Vector squared{}, of_receiver{}, of_sender{};
      for (int axis = 0; axis < 3; ++axis) {
        const Vector i = Load(VectorsOf(layer, block, block.receiver[row], axis) + k);
        const Vector j = Load(VectorsOf(layer, block, block.sender[row], axis) + k);
        squared += (i - j) * (i - j);
        of_receiver += block.difference[row][axis] * i;
        of_sender += block.difference[row][axis] * j;
      }
      Store(out + k, squared);
      Store(out + channels + k, of_receiver);
      Store(out + 2 * channels + k, of_sender);
    }
}

// Writes (x - mean) / deviation over each row of x, and 1 / deviation.
inline void Standardize(float* x, float* inverse_deviation, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, x += width) {
    Vector sum{}, squares{};
    for (int64_t k = 0; k < width; k += kLanes) sum += Load(x + k);
    const float mean = Sum(sum) / width;
    for (int64_t k = 0; k < width; k += kLanes) squares += (Load(x + k) - mean) * (Load(x + k) - mean);
    const float scale = 1 / std::sqrt(Sum(squares) / width + kEpsilon);
    for (int64_t k = 0; k < width; k += kLanes) Store(x + k, (Load(x + k) - mean) * scale);
    inverse_deviation[row] = scale;
  }
}

template <bool kWithSlopes>
void Forward(const Layer& layer, const Block& block, const Rows& rows) {
  const int64_t width = layer.width, first_node = block.time * layer.nodes;
  Invariants(layer, block, rows.invariants);
  for (int64_t row = 0; row < block.rows; ++row) {
    const float* u = layer.u + (first_node + block.receiver[row]) * width;
    const float* v = layer.v + (first_node + block.sender[row]) * width;
    const float* e = layer.edge_features + (block.first + row) * layer.edge_dim;
    for (int64_t k = 0; k < width; k += kLanes) {
      Vector a = Load(u + k) + Load(v + k) + block.distance[row] * Load(layer.of_distance + k);
      for (int64_t d = 0; d < layer.edge_dim; ++d) a += e[d] * Load(layer.of_edge + d * width + k);
      Store(rows.s + row * width + k, a);
    }
  }
  MultiplyAdd(rows.invariants, layer.of_invariants, block.rows, layer.invariants(), width, rows.s);
  Activate<kWithSlopes>(rows.s, rows.slope_s, block.rows * width);
  Linear(rows.s, layer.message_kernel, layer.message_bias, block.rows, width, width, rows.m);
  Activate<kWithSlopes>(rows.m, rows.slope_m, block.rows * width);
  Standardize(rows.m, rows.deviation, block.rows, width);
  Linear(rows.m, layer.gate_kernel, layer.gate_bias, block.rows, width, layer.gates(), rows.gates);
}

inline float StepFactor(const Layer& layer, const float* m) {
  return Dot(m, layer.step_kernel, layer.width) + layer.step_bias[0];
}

inline void AddMessages(const Layer& layer, const Block& block, const Rows& rows, NodeSums sums) {
  const int64_t width = layer.width, channels = layer.channels;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t i = block.target[row];
    if (i < 0) continue;
    const float *m = rows.m + row * width, *alpha = rows.gates + row * layer.gates();
    for (int64_t k = 0; k < width; k += kLanes) Add(sums.features + i * width + k, Load(m + k));
    const float f = StepFactor(layer, m);
    for (int axis = 0; axis < 3; ++axis) {
      const float r = block.difference[row][axis];
      sums.positions[3 * i + axis] += r * f;
      const float* of_i = VectorsOf(layer, block, block.receiver[row], axis);
      const float* of_j = VectorsOf(layer, block, block.sender[row], axis);
      float* to = sums.vectors + (3 * i + axis) * channels;
      for (int64_t k = 0; k < channels; k += kLanes)
        Add(to + k, r * Load(alpha + k) +
                        Load(alpha + channels + k) * (Load(of_i + k) - Load(of_j + k)));
    }
  }
}

// Results: `FunctionResult`.
inline void Compute(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t count = NumTasks(pool, layer.times * layer.blocks());
  std::vector<std::unique_ptr<Scratch>> scratch(count);
  std::vector<Rows> rows;
  for (auto& own : scratch) {
    own = std::make_unique<Scratch>(Rows::size(layer));
    rows.emplace_back(layer, *own);
  }
  const NodeSums sums = {OutData(rets, kMessages), nullptr, OutData(rets, kSteps),
                         OutData(rets, kVectorSums)};
  SumOverNodes(pool, layer, count, sums, [&](int64_t task, const Block& block, NodeSums part) {
    Forward<false>(layer, block, rows[task]);
    AddMessages(layer, block, rows[task], part);
  });
}

// ---- The derivative ----

// The gradients with respect to the weights, summed by one task.
struct WeightSums {
  float *of_distance, *of_edge, *of_invariants, *message_bias, *message_kernel;
  float *gate_bias, *gate_kernel, *step_bias, *step_kernel;

  static int64_t size(const Layer& layer) {
    const int64_t rows = 3 + layer.edge_dim + layer.invariants() + layer.width + layer.gates();
    return rows * layer.width + layer.gates() + 16;
  }
  WeightSums(const Layer& layer, Scratch& scratch)
      : of_distance(scratch.take_zeros(layer.width)),
        of_edge(scratch.take_zeros(layer.edge_dim * layer.width)),
        of_invariants(scratch.take_zeros(layer.invariants() * layer.width)),
        message_bias(scratch.take_zeros(layer.width)),
        message_kernel(scratch.take_zeros(layer.width * layer.width)),
        gate_bias(scratch.take_zeros(layer.gates())),
        gate_kernel(scratch.take_zeros(layer.width * layer.gates())),
        step_bias(scratch.take_zeros(16)),
        step_kernel(scratch.take_zeros(layer.width)) {}
};

// Read by all tasks: cotangents and transposed kernels.
struct Shared {
  const float *d_messages, *d_steps, *d_vectors, *zeros;
  float *message_kernel_transposed, *gate_kernel_transposed, *of_invariants_transposed;
};

// What one task keeps of a block on the way back.
struct Cotangents {
  float *gates, *m, *invariants;

  static int64_t size(const Layer& layer) {
    return kBlock * (layer.gates() + layer.width + layer.invariants());
  }
  Cotangents(const Layer& layer, Scratch& scratch)
      : gates(scratch.take(kBlock * layer.gates())),
        m(scratch.take(kBlock * layer.width)),
        invariants(scratch.take(kBlock * layer.invariants())) {}
};

// The gradients of alpha, beta and f; of f returned.
inline void DescendSums(const Layer& layer, const Shared& shared, const Block& block,
                        const Cotangents& d, float* d_f) {
  const int64_t channels = layer.channels;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t i = block.target[row];
    float* d_alpha = d.gates + row * layer.gates();
    d_f[row] = 0;
    if (i < 0) {
      std::memset(d_alpha, 0, sizeof(float) * layer.gates());
      continue;
    }
    const int64_t node = block.time * layer.nodes + i;
    for (int axis = 0; axis < 3; ++axis)
      d_f[row] += block.difference[row][axis] * shared.d_steps[3 * node + axis];
    for (int64_t k = 0; k < channels; k += kLanes) {
      Vector alpha{}, beta{};
      for (int axis = 0; axis < 3; ++axis) {
        const Vector d_u = Load(shared.d_vectors + (3 * node + axis) * channels + k);
        const Vector of_i = Load(VectorsOf(layer, block, block.receiver[row], axis) + k);
        const Vector of_j = Load(VectorsOf(layer, block, block.sender[row], axis) + k);
        alpha += block.difference[row][axis] * d_u;
        beta += (of_i - of_j) * d_u;
      }
      Store(d_alpha + k, alpha);
      Store(d_alpha + channels + k, beta);
    }
  }
}

// d_b, written over slope_m, from the gradient of m, which is in d.m but for the sums of m and f.
inline void DescendMessages(const Layer& layer, const Shared& shared, const Block& block,
                            const Rows& rows, const Cotangents& d, const float* d_f) {
  const int64_t width = layer.width;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t i = block.target[row];
    const float* d_sum =
        i < 0 ? shared.zeros : shared.d_messages + (block.time * layer.nodes + i) * width;
    float *d_m = d.m + row * width, *slope = rows.slope_m + row * width;
    const float* m = rows.m + row * width;
    Vector sum{}, along{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Vector all = Load(d_m + k) + Load(d_sum + k) + d_f[row] * Load(layer.step_kernel + k);
      Store(d_m + k, all);
      sum += all;
      along += all * Load(m + k);
    }
    const float mean = Sum(sum) / width, projection = Sum(along) / width;
    for (int64_t k = 0; k < width; k += kLanes)
      Store(slope + k, rows.deviation[row] * (Load(d_m + k) - mean - projection * Load(m + k)) *
                           Load(slope + k));
  }
}

// The gradients of u, v, x and V, from d_a, the gradients of the invariants and the sums.
inline void DescendNodes(const Layer& layer, const Shared& shared, const Block& block,
                         const Rows& rows, const Cotangents& d, const float* d_a, NodeSums sums,
                         EdgeGradients d_edges) {
  const int64_t width = layer.width, channels = layer.channels;
  for (int64_t row = 0; row < block.rows; ++row) {
    const float* d_row = d_a + row * width;
    const int64_t i = block.receiver[row], j = block.sender[row], target = block.target[row];
    Vector along_distance{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Vector value = Load(d_row + k);
      Add(sums.features + i * width + k, value);
      Add(sums.others + j * width + k, value);
      along_distance += value * Load(layer.of_distance + k);
    }
    const float d_distance = 2 * Sum(along_distance);
    const float f = target < 0 ? 0 : StepFactor(layer, rows.m + row * width);
    const float *alpha = rows.gates + row * layer.gates(), *beta = alpha + channels;
    const float *d_squared = d.invariants + row * layer.invariants(),
                *d_of_i = d_squared + channels, *d_of_j = d_of_i + channels;
    const int64_t node = block.time * layer.nodes + target;
    for (int axis = 0; axis < 3; ++axis) {
      const float r = block.difference[row][axis];
      const float *of_i = VectorsOf(layer, block, i, axis), *of_j = VectorsOf(layer, block, j, axis);
      float* to_i = sums.vectors + (3 * i + axis) * channels;
      float* to_j = sums.vectors + (3 * j + axis) * channels;
      const float* d_u = shared.d_vectors + (3 * node + axis) * channels;
      Vector d_r{};
      for (int64_t k = 0; k < channels; k += kLanes) {
        const Vector v_i = Load(of_i + k), v_j = Load(of_j + k);
        Vector d_difference = 2 * Load(d_squared + k) * (v_i - v_j);
        d_r += Load(d_of_i + k) * v_i + Load(d_of_j + k) * v_j;
        if (target >= 0) {
          d_difference += Load(beta + k) * Load(d_u + k);
          d_r += Load(alpha + k) * Load(d_u + k);
        }
        Add(to_i + k, d_difference + r * Load(d_of_i + k));
        Add(to_j + k, r * Load(d_of_j + k) - d_difference);
      }
      float d_x = d_distance * r + Sum(d_r);
      if (target >= 0) d_x += f * shared.d_steps[3 * node + axis];
      sums.positions[3 * i + axis] += d_x;
      sums.positions[3 * j + axis] -= d_x;
      if (d_edges.shifts) d_edges.shifts[3 * (block.first + row) + axis] = d_x;
    }
  }
}

// The rows of kernels for distances, edge features and biases.
inline void DescendWeights(const Layer& layer, const Block& block, const Rows& rows,
                           const float* d_a, const float* d_f, WeightSums& weights) {
  const int64_t width = layer.width;
  const float* e = layer.edge_features + block.first * layer.edge_dim;
  for (int64_t d = -1; d < layer.edge_dim; ++d) {
    float* to = d < 0 ? weights.of_distance : weights.of_edge + d * width;
    for (int64_t k = 0; k < width; k += kLanes) {
      Vector sum{};
      for (int64_t row = 0; row < block.rows; ++row)
        sum += (d < 0 ? block.distance[row] : e[row * layer.edge_dim + d]) *
               Load(d_a + row * width + k);
      Add(to + k, sum);
    }
  }
  for (int64_t k = 0; k < width; k += kLanes) {
    Vector sum{};
    for (int64_t row = 0; row < block.rows; ++row) sum += d_f[row] * Load(rows.m + row * width + k);
    Add(weights.step_kernel + k, sum);
  }
  for (int64_t row = 0; row < block.rows; ++row) weights.step_bias[0] += d_f[row];
}

inline void Backward(const Layer& layer, const Shared& shared, const Block& block, const Rows& rows,
                     const Cotangents& d, WeightSums& weights, NodeSums sums,
                     EdgeGradients d_edges) {
  const int64_t width = layer.width, count = block.rows;
  float d_f[kBlock];
  DescendSums(layer, shared, block, d, d_f);
  AddOuter(rows.m, d.gates, count, width, layer.gates(), weights.gate_kernel);
  AddColumns(weights.gate_bias, d.gates, count, layer.gates());
  Multiply(d.gates, shared.gate_kernel_transposed, count, layer.gates(), width, shared.zeros, d.m);
  DescendMessages(layer, shared, block, rows, d, d_f);
  const float* d_b = rows.slope_m;
  AddOuter(rows.s, d_b, count, width, width, weights.message_kernel);
  AddColumns(weights.message_bias, d_b, count, width);
  float* d_a = d.m;
  Multiply(d_b, shared.message_kernel_transposed, count, width, width, shared.zeros, d_a);
  for (int64_t k = 0; k < count * width; k += kLanes)
    Store(d_a + k, Load(d_a + k) * Load(rows.slope_s + k));
  AddOuter(rows.invariants, d_a, count, layer.invariants(), width, weights.of_invariants);
  Multiply(d_a, shared.of_invariants_transposed, count, width, layer.invariants(), shared.zeros,
           d.invariants);
  DescendNodes(layer, shared, block, rows, d, d_a, sums, d_edges);
  DescendWeights(layer, block, rows, d_a, d_f, weights);
  for (int64_t row = 0; row < count && d_edges.features; ++row)
    for (int64_t feature = 0; feature < layer.edge_dim; ++feature)
      d_edges.features[(block.first + row) * layer.edge_dim + feature] =
          Dot(d_a + row * width, layer.of_edge + feature * width, width);
}

// Results: the gradients of the floating operands; those of e and of the shifts are [P, E, D] and
// [P, E, 3], or empty if not wanted.
inline void ComputeVjp(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t width = layer.width, gates = layer.gates(), invariants = layer.invariants();
  const int64_t most = std::max({width, gates, invariants});
  Scratch scratch(most + width * (width + gates + invariants));
  const Shared shared = {InData(args, kMessagesCotangent),
                         InData(args, kStepsCotangent),
                         InData(args, kVectorsCotangent),
                         scratch.take_zeros(most),
                         scratch.take(width * width),
                         scratch.take(width * gates),
                         scratch.take(width * invariants)};
  Transpose(layer.message_kernel, width, width, shared.message_kernel_transposed);
  Transpose(layer.gate_kernel, width, gates, shared.gate_kernel_transposed);
  Transpose(layer.of_invariants, invariants, width, shared.of_invariants_transposed);

  const int64_t count = NumTasks(pool, layer.times * layer.blocks());
  std::vector<std::unique_ptr<Scratch>> own(count);
  std::vector<Carried<WeightSums>> weights;
  std::vector<Rows> rows;
  std::vector<Cotangents> cotangents;
  for (auto& place : own) {
    const int64_t size = Rows::size(layer) + Cotangents::size(layer);
    place = std::make_unique<Scratch>(size + Carried<WeightSums>::size(layer));
    weights.emplace_back(layer, *place);
    rows.emplace_back(layer, *place);
    cotangents.emplace_back(layer, *place);
  }
  const NodeSums result = {OutData(rets, kOfReceivers), OutData(rets, kOfSenders),
                           OutData(rets, kPositions), OutData(rets, kVectors)};
  SumOverNodes(pool, layer, count, result, [&](int64_t task, const Block& block, NodeSums sums) {
    const EdgeGradients d_edges(layer, rets, kEdgeFeatures, kEdgeShifts, block.time);
    Forward<true>(layer, block, rows[task]);
    Backward(layer, shared, block, rows[task], cotangents[task], weights[task].next(), sums,
             d_edges);
  });
  for (auto& sums : weights) sums.Carry();
  Gather(weights, &WeightSums::of_distance, Out(rets, kOfDistance));
  Gather(weights, &WeightSums::of_edge, Out(rets, kOfEdge));
  Gather(weights, &WeightSums::of_invariants, Out(rets, kOfInvariants));
  Gather(weights, &WeightSums::gate_bias, Out(rets, kGateBias));
  Gather(weights, &WeightSums::gate_kernel, Out(rets, kGateKernel));
  Gather(weights, &WeightSums::message_bias, Out(rets, kMessageBias));
  Gather(weights, &WeightSums::message_kernel, Out(rets, kMessageKernel));
  Gather(weights, &WeightSums::step_bias, Out(rets, kStepBias));
  Gather(weights, &WeightSums::step_kernel, Out(rets, kStepKernel));
}

}  // namespace egno::vector_sums

#endif  // EGNO_JAX_OPS_KERNELS_VECTOR_SUMS_H_
