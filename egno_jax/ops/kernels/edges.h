// Edges in blocks, and sums over the nodes that they connect.
//
// A `Layer` has the sizes `times`, `nodes`, `edges`, `blocks()`, `width` and `channels`, and the
// addresses `positions`, `edge_shifts` (null if there are none), `senders` and `receivers`.

#ifndef EGNO_JAX_OPS_KERNELS_EDGES_H_
#define EGNO_JAX_OPS_KERNELS_EDGES_H_

#include "base.h"

namespace egno {

inline int64_t Clamped(int64_t index, int64_t size) {
  return std::min(std::max<int64_t>(index, 0), size - 1);
}

// The node that a sum is added to, or -1 for none; negative indices count from the end.
inline int64_t Target(int64_t index, int64_t size) {
  if (index < 0) index += size;
  return index < 0 || index >= size ? -1 : index;
}

// One block of edges at one time.
struct Block {
  int64_t time, first, rows;
  int64_t sender[kBlock], receiver[kBlock], target[kBlock];
  float difference[kBlock][3], distance[kBlock];

  template <typename Layer>
  Block(const Layer& layer, int64_t index)
      : time(index / layer.blocks()),
        first(index % layer.blocks() * kBlock),
        rows(std::min(kBlock, layer.edges - first)) {
    const float* x = layer.positions + time * layer.nodes * 3;
    for (int64_t row = 0; row < rows; ++row) {
      sender[row] = Clamped(layer.senders[first + row], layer.nodes);
      receiver[row] = Clamped(layer.receivers[first + row], layer.nodes);
      target[row] = Target(layer.receivers[first + row], layer.nodes);
      distance[row] = 0;
      for (int axis = 0; axis < 3; ++axis) {
        float r = x[3 * receiver[row] + axis] - x[3 * sender[row] + axis];
        if (layer.edge_shifts) r += layer.edge_shifts[3 * (first + row) + axis];
        difference[row][axis] = r;
        distance[row] += r * r;
      }
    }
  }
};

// The gradients of e [E, D] and of the shifts [E, 3] at one time; null if not wanted.
struct EdgeGradients {
  float *features, *shifts;

  template <typename Layer>
  EdgeGradients(const Layer& layer, const ffi::RemainingRets& rets, size_t of_features,
                size_t of_shifts, int64_t time) {
    auto at_time = [&](size_t index, int64_t size) -> float* {
      if (Out(rets, index)->element_count() == 0) return nullptr;
      return OutData(rets, index) + time * layer.edges * size;
    };
    features = at_time(of_features, layer.edge_dim);
    shifts = at_time(of_shifts, 3);
  }
};

// Sums over the nodes of one time: features and others [N, C], positions [N, 3] and vectors
// [N, 3, K]. Null are those that a kernel does not have.
struct NodeSums {
  float *features, *others, *positions, *vectors;
};

// Sums over the nodes of all times: each task adds its blocks of edges. If tasks share a time, the
// first of them adds to the result and the others to arrays of their own, which are added at the
// end.
template <typename Layer, typename AddBlock>
void SumOverNodes(ffi::ThreadPool& pool, const Layer& layer, int64_t count, NodeSums result,
                  const AddBlock& add_block) {
  struct Field {
    float* NodeSums::*array;
    int64_t size;  // at one time
  };
  std::vector<Field> fields;
  int64_t total = 0;
  auto add_field = [&](float* NodeSums::*array, int64_t row) {
    if (result.*array == nullptr) return;
    fields.push_back({array, layer.nodes * row});
    total += layer.nodes * row;
    std::memset(result.*array, 0, sizeof(float) * layer.times * layer.nodes * row);
  };
  add_field(&NodeSums::features, layer.width);
  add_field(&NodeSums::others, layer.width);
  add_field(&NodeSums::positions, 3);
  add_field(&NodeSums::vectors, 3 * layer.channels);
  auto at_time = [&](int64_t time) {
    NodeSums sums = result;
    for (const Field& field : fields) sums.*field.array += time * field.size;
    return sums;
  };

  std::vector<std::unique_ptr<Scratch>> places(count);
  std::vector<NodeSums> aside(count, NodeSums{});
  auto blocks_of = [&](int64_t task) { return RangeOf(layer.times * layer.blocks(), task, count); };
  auto shares_time = [&](int64_t task) { return blocks_of(task).begin % layer.blocks() != 0; };
  for (int64_t task = 0; task < count; ++task) {
    if (!shares_time(task)) continue;
    places[task] = std::make_unique<Scratch>(total);
    for (const Field& field : fields)
      aside[task].*field.array = places[task]->take_zeros(field.size);
  }
  Parallel(pool, count, [&](int64_t task) {
    const Range blocks = blocks_of(task);
    const int64_t first_time = blocks.begin / layer.blocks();
    for (int64_t index = blocks.begin; index < blocks.end; ++index) {
      const Block block(layer, index);
      const bool is_aside = shares_time(task) && block.time == first_time;
      add_block(task, block, is_aside ? aside[task] : at_time(block.time));
    }
  });
  for (int64_t task = 0; task < count; ++task) {
    if (!places[task]) continue;
    const NodeSums sums = at_time(blocks_of(task).begin / layer.blocks());
    for (const Field& field : fields)
      AddAll(sums.*field.array, aside[task].*field.array, field.size);
  }
}

}  // namespace egno

#endif  // EGNO_JAX_OPS_KERNELS_EDGES_H_
