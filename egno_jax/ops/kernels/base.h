// Vectors, small matrix products, memory and threads for the kernels.

#ifndef EGNO_JAX_OPS_KERNELS_BASE_H_
#define EGNO_JAX_OPS_KERNELS_BASE_H_

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace egno {

namespace ffi = xla::ffi;

// ---- Vectors -----------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6, kTileVectors = 2;
#else
constexpr int kLanes = 4, kTileRows = 4, kTileVectors = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));

inline Vector Load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void Store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline Vector Splat(float x) { return x - Vector{}; }

inline void Add(float* to, Vector v) { Store(to, Load(to) + v); }

inline float Sum(Vector v) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// exp(x), within 2 units in the last place; infinite from 88.4 on, clamped below -87, NaN for NaN.
// 2^n exp(f): n = round(x / log 2), f by the Taylor series to the sixth power, |f| < 0.35.
inline Vector Exp(Vector x) {
  x = x > 89.0f ? Splat(89.0f) : x;  // n = 128, which gives the bits of infinity
  x = x < -87.0f ? Splat(-87.0f) : x;
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vector shifted = x * 1.44269504f + kRound;
  Vector n = shifted - kRound;
  Vector f = x - n * 0.693145752f - n * 1.42860677e-6f;
  Vector series = f * (1.0f / 720) + (1.0f / 120);
  series = series * f + (1.0f / 24);
  series = series * f + (1.0f / 6);
  series = series * f + 0.5f;
  series = series * f + 1.0f;
  series = series * f + 1.0f;
  IntVector exponent = ((IntVector)shifted << 23) + (127 << 23);
  return series * (Vector)exponent;
}

// Zero, not only small, for large negative x: x Sigmoid(x) vanishes however large x is.
inline Vector Sigmoid(Vector x) { return 1.0f / (1.0f + Exp(-x)); }

// ---- Products of small matrices -----------------------------------------------------------------

// A view of a matrix by two strides.
struct Matrix {
  const float* data;
  int64_t row, column;
};

// out[rows, kVectors kLanes] = start + a b, where start is out itself or a row that is repeated.
template <int kRows, int kVectors>
inline void Tile(Matrix a, const float* b, int64_t width, int64_t depth, const float* start,
                 int64_t start_row, float* out) {
  Vector sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Load(start + i * start_row + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Vector row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = Load(b + k * width + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      Vector x = Splat(a.data[i * a.row + k * a.column]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] += x * row[v];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) Store(out + i * width + v * kLanes, sum[i][v]);
}

template <int kVectors>
inline void Columns(Matrix a, const float* b, int64_t width, int64_t rows, int64_t depth,
                    const float* start, int64_t start_row, float* out) {
  int64_t i = 0;
  auto tile = [&](auto count) {
    Tile<decltype(count)::value, kVectors>({a.data + i * a.row, a.row, a.column}, b, width, depth,
                                           start + i * start_row, start_row, out + i * width);
    i += decltype(count)::value;
  };
  while (i + kTileRows <= rows) tile(std::integral_constant<int, kTileRows>());
  while (i + 2 <= rows) tile(std::integral_constant<int, 2>());
  while (i < rows) tile(std::integral_constant<int, 1>());
}

// out[rows, width] = start + a[rows, depth] b[depth, width]; width is a multiple of kLanes.
// `start` is out itself (start_row = width) or one row for all (start_row = 0).
inline void Product(Matrix a, const float* b, int64_t width, int64_t rows, int64_t depth,
             const float* start, int64_t start_row, float* out) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= width; j += kTileVectors * kLanes)
    Columns<kTileVectors>(a, b + j, width, rows, depth, start + j, start_row, out + j);
  for (; j < width; j += kLanes)
    Columns<1>(a, b + j, width, rows, depth, start + j, start_row, out + j);
}

// out = a b, all of them rows one after the other: a [rows, depth], b [depth, width].
inline void Multiply(const float* a, const float* b, int64_t rows, int64_t depth, int64_t width,
                     const float* zeros, float* out) {
  Product({a, depth, 1}, b, width, rows, depth, zeros, 0, out);
}

// out = bias + a b
inline void Linear(const float* a, const float* b, const float* bias, int64_t rows, int64_t depth,
                   int64_t width, float* out) {
  Product({a, depth, 1}, b, width, rows, depth, bias, 0, out);
}

// out += a b
inline void MultiplyAdd(const float* a, const float* b, int64_t rows, int64_t depth, int64_t width,
                        float* out) {
  Product({a, depth, 1}, b, width, rows, depth, out, width, out);
}

// out += transposed(a) b: the gradient of a kernel, a [rows, depth], b [rows, width].
inline void AddOuter(const float* a, const float* b, int64_t rows, int64_t depth, int64_t width,
                     float* out) {
  Product({a, 1, depth}, b, width, depth, rows, out, width, out);
}

// Writes silu(x) over x, and with kWithSlope its derivative to `slope`.
template <bool kWithSlope>
inline void Activate(float* x, float* slope, int64_t size) {
  for (int64_t k = 0; k < size; k += kLanes) {
    Vector v = Load(x + k), s = Sigmoid(v), activated = v * s;
    Store(x + k, activated);
    if (kWithSlope) Store(slope + k, s + activated * (1.0f - s));
  }
}

inline void Transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

// to[columns] += the sum of all rows.
inline void AddColumns(float* to, const float* from, int64_t rows, int64_t columns) {
  for (int64_t k = 0; k < columns; k += kLanes) {
    Vector sum = Load(to + k);
    for (int64_t row = 0; row < rows; ++row) sum += Load(from + row * columns + k);
    Store(to + k, sum);
  }
}

// sum_k x_k y_k
inline float Dot(const float* x, const float* y, int64_t size) {
  Vector sum{};
  for (int64_t k = 0; k < size; k += kLanes) sum += Load(x + k) * Load(y + k);
  return Sum(sum);
}

inline void AddAll(float* to, const float* from, int64_t size) {
  for (int64_t k = 0; k < size; ++k) to[k] += from[k];
}

// ---- Memory and threads ----

constexpr int64_t kBlock = 48;  // rows that are processed together: a multiple of kTileRows

// Memory kept from one call to the next, because fresh pages from the system cost more than the
// work on them. Its size is bounded, and the oldest piece is freed first.
class Reserve {
 public:
  struct Piece {
    float* data;
    int64_t size;
  };

  static Reserve& instance() {
    static Reserve* reserve = new Reserve;
    return *reserve;
  }
  Piece Take(int64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->size >= size && (best == free_.end() || it->size < best->size)) best = it;
    // A piece that is far too large is left for a call that needs it.
    if (best == free_.end() || best->size > 2 * size)
      return {static_cast<float*>(::operator new(size * sizeof(float), kAlignment)), size};
    const Piece piece = *best;
    free_.erase(best);
    kept_ -= piece.size;
    return piece;
  }
  void Return(Piece piece) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(piece);
    kept_ += piece.size;
    while (kept_ > kMostKept || free_.size() > kMostPieces) {
      kept_ -= free_.front().size;
      ::operator delete(free_.front().data, kAlignment);
      free_.erase(free_.begin());
    }
  }

 private:
  Reserve() { free_.reserve(kMostPieces + 1); }  // so that Return cannot fail

  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kMostPieces = 64;
  static constexpr int64_t kMostKept = int64_t{1} << 26;  // numbers: 256 MiB
  std::mutex mutex_;
  std::vector<Piece> free_;
  int64_t kept_ = 0;
};

// Memory for one call, given out in pieces and returned at the end.
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : piece_(Reserve::instance().Take(size + 16 * kMostPieces)), end_(size + 16 * kMostPieces) {}
  ~Scratch() { Reserve::instance().Return(piece_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* take(int64_t size) {
    float* taken = piece_.data + used_;
    used_ += (size + 15) / 16 * 16;
    assert(used_ <= end_);
    return taken;
  }
  float* take_zeros(int64_t size) {
    float* taken = take(size);
    std::memset(taken, 0, size * sizeof(float));
    return taken;
  }

 private:
  static constexpr int64_t kMostPieces = 32;
  Reserve::Piece piece_;
  int64_t used_ = 0, end_;
};

// Runs task(0) ... task(count - 1) on the pool's threads and on this one. This thread waits only
// for tasks that have begun, so that pool threads waiting here cannot block one another. A helper
// that starts late finds no work and does not touch `task`, which may be destroyed by then. Tasks
// must not throw: the pool's threads would not catch it.
template <typename Task>
void Parallel(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  auto work = [state, count, &task] {
    for (int64_t index; (index = state->next.fetch_add(1)) < count;) {
      task(index);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t helper = 1; helper < count; ++helper) {
    auto copy = work;
    try {
      pool.Schedule(std::move(copy));
    } catch (const std::bad_alloc&) {
      break;  // fewer helpers; those that run still read `task`
    }
  }
  work();
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// Half-open range of a total that is cut into `count` nearly equal ones.
struct Range {
  int64_t begin, end;
};

inline Range RangeOf(int64_t total, int64_t index, int64_t count) {
  return {total * index / count, total * (index + 1) / count};
}

inline int64_t NumBlocks(int64_t rows) { return (rows + kBlock - 1) / kBlock; }

inline int64_t NumTasks(ffi::ThreadPool& pool, int64_t blocks) {
  return std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), blocks));
}

// Calls body(task, first row, number of rows) for all rows, block by block, on all threads.
template <typename Body>
void ParallelRows(ffi::ThreadPool& pool, int64_t count, int64_t rows, const Body& body) {
  Parallel(pool, count, [&](int64_t task) {
    const Range blocks = RangeOf(NumBlocks(rows), task, count);
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
      body(task, block * kBlock, std::min(kBlock, rows - block * kBlock));
  });
}

using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// The operands of a call by position, an `Operand` of the kernel. cpu.py checks their types.
inline Buffer In(const ffi::RemainingArgs& args, size_t index) {
  return args.get<Buffer>(index).value();
}
inline const int32_t* Indices(const ffi::RemainingArgs& args, size_t index) {
  return args.get<ffi::Buffer<ffi::S32>>(index).value().typed_data();
}
inline Result Out(const ffi::RemainingRets& rets, size_t index) {
  return rets.get<Buffer>(index).value();
}
inline float* OutData(const ffi::RemainingRets& rets, size_t index) {
  return Out(rets, index)->typed_data();
}
inline const float* InData(const ffi::RemainingArgs& args, size_t index) {
  return In(args, index).typed_data();
}
inline int64_t Size(const ffi::RemainingArgs& args, size_t index, size_t axis) {
  return In(args, index).dimensions()[axis];
}

// Sums of one task over its blocks. A large sum in float32 loses digits of small terms, so a few
// blocks are summed separately before they are added to the total. The fields of `Sums` are
// consecutive in the scratch.
template <typename Sums>
class Carried {
 public:
  template <typename Layer>
  static int64_t size(const Layer& layer) {
    return 2 * Sums::size(layer);
  }
  template <typename Layer>
  Carried(const Layer& layer, Scratch& scratch)
      : size_(Sums::size(layer)),
        recent_begin_(scratch.take(0)),
        recent_(layer, scratch),
        total_begin_(scratch.take(0)),
        total_(layer, scratch) {}

  // The sums to which the next block is added.
  Sums& next() {
    if (++blocks_ % kBlocks == 0) Carry();
    return recent_;
  }
  // The sums over all blocks, once they are carried.
  const Sums& total() const { return total_; }
  void Carry() {
    AddAll(total_begin_, recent_begin_, size_);
    std::memset(recent_begin_, 0, size_ * sizeof(float));
  }

 private:
  static constexpr int64_t kBlocks = 32;
  int64_t size_, blocks_ = 0;
  float* recent_begin_;
  Sums recent_;
  float* total_begin_;
  Sums total_;
};

// result = the sum over all tasks of one of their fields.
template <typename Sums>
void Gather(const std::vector<Carried<Sums>>& all, float* Sums::*field, Result result) {
  float* to = result->typed_data();
  std::memset(to, 0, result->size_bytes());
  for (const Carried<Sums>& sums : all)
    AddAll(to, sums.total().*field, static_cast<int64_t>(result->element_count()));
}

}  // namespace egno

#endif  // EGNO_JAX_OPS_KERNELS_BASE_H_
