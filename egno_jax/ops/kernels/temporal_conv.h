// The temporal convolution of scalar features, and its reverse-mode derivative. For every node,
// with B real Fourier coefficients X_b (of each mode the real part, then the imaginary part):
//
//   X_b = sum_p F_bp h_p
//   Y_b = X_b R_b                                                   of a real mode
//   Y_re = X_re R_re - X_im R_im,   Y_im = X_re R_im + X_im R_re    of a complex one
//   y_p = sum_b G_pb Y_b,           out_p = h_p + LeakyReLU(y_p)
//
// Nodes are processed in blocks that stay in the cache; the derivative recomputes X and Y. The width
// is a multiple of 16.

#ifndef EGNO_JAX_OPS_KERNELS_TEMPORAL_CONV_H_
#define EGNO_JAX_OPS_KERNELS_TEMPORAL_CONV_H_

#include "base.h"

namespace egno::temporal_conv {

constexpr float kNegativeSlope = 0.01f;
// Fewer nodes than rows elsewhere: a block holds all their times.
constexpr int64_t kNodes = 24;

// The operands in the order of cpu.py. Gradients of the first two have the same positions.
enum Operand : size_t {
  kFeatures,        // h [P, N, C]
  kKernel,          // [2, M, C, C]
  kModeOf,          // [B], the mode of each coefficient: one for a real mode, two for others
  kToCoefficients,  // F [B, P]
  kToTimes,         // G [P, B]
  kCotangent        // of the result; of the derivative alone
};

enum FunctionResult : size_t { kOut };

// Sizes and addresses of the operands.
struct Layer {
  int64_t times, nodes, width, modes, coefficients;
  const float *features, *kernel, *forward, *inverse;
  const int32_t* mode_of;

  explicit Layer(const ffi::RemainingArgs& args)
      : times(Size(args, kFeatures, 0)),
        nodes(Size(args, kFeatures, 1)),
        width(Size(args, kFeatures, 2)),
        modes(Size(args, kKernel, 1)),
        coefficients(Size(args, kToCoefficients, 0)),
        features(InData(args, kFeatures)),
        kernel(InData(args, kKernel)),
        forward(InData(args, kToCoefficients)),
        inverse(InData(args, kToTimes)),
        mode_of(Indices(args, kModeOf)) {}

  int64_t square() const { return width * width; }
  int64_t real_part(int64_t b) const { return mode_of[b] * square(); }
  int64_t imaginary_part(int64_t b) const { return (modes + mode_of[b]) * square(); }
  bool is_real(int64_t b) const { return b + 1 == coefficients || mode_of[b + 1] != mode_of[b]; }
  int64_t blocks() const { return (nodes + kNodes - 1) / kNodes; }
};

// kRows rows of one vector of `Combine`.
template <int kRows>
inline void CombineRows(const float* matrix, int64_t columns, const float* in, int64_t in_stride,
                        float* out, int64_t out_stride) {
  Vector sum[kRows] = {};
  for (int64_t j = 0; j < columns; ++j) {
    const Vector v = Load(in + j * in_stride);
    for (int i = 0; i < kRows; ++i) sum[i] += matrix[i * columns + j] * v;
  }
  for (int i = 0; i < kRows; ++i) Store(out + i * out_stride, sum[i]);
}

// out_i = sum_j matrix_ij in_j of arrays of `size` numbers each, `stride` apart.
inline void Combine(const float* matrix, int64_t rows, int64_t columns, const float* in,
                    int64_t in_stride, int64_t size, float* out, int64_t out_stride) {
  constexpr int64_t kRows = 8;
  for (int64_t k = 0; k < size; k += kLanes) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows)
      CombineRows<kRows>(matrix + i * columns, columns, in + k, in_stride, out + i * out_stride + k,
                         out_stride);
    for (; i < rows; ++i)
      CombineRows<1>(matrix + i * columns, columns, in + k, in_stride, out + i * out_stride + k,
                     out_stride);
  }
}

inline void Negate(const float* from, int64_t size, float* to) {
  for (int64_t k = 0; k < size; k += kLanes) Store(to + k, -Load(from + k));
}

// Calls real(b) for coefficients of real modes and complex(b), with b + 1 the imaginary part, for
// those of others.
template <typename Real, typename Complex>
void ForModes(const Layer& layer, const Real& real, const Complex& complex) {
  for (int64_t b = 0; b < layer.coefficients; ++b) {
    if (layer.is_real(b)) {
      real(b);
    } else {
      complex(b);
      ++b;
    }
  }
}

// Y of a block from X; `minus` has room for one coefficient.
inline void Mix(const Layer& layer, const float* kernel, const float* x, int64_t rows, float* minus,
                const float* zeros, float* y) {
  const int64_t width = layer.width, stride = kNodes * width;
  ForModes(
      layer,
      [&](int64_t b) {
        Multiply(x + b * stride, kernel + layer.real_part(b), rows, width, width, zeros,
                 y + b * stride);
      },
      [&](int64_t b) {
        const float *re = x + b * stride, *im = re + stride;
        const float *r_re = kernel + layer.real_part(b), *r_im = kernel + layer.imaginary_part(b);
        float *y_re = y + b * stride, *y_im = y_re + stride;
        Negate(im, rows * width, minus);
        Multiply(re, r_re, rows, width, width, zeros, y_re);
        MultiplyAdd(minus, r_im, rows, width, width, y_re);
        Multiply(re, r_im, rows, width, width, zeros, y_im);
        MultiplyAdd(im, r_re, rows, width, width, y_im);
      });
}

// Runs body(task, first node, number of nodes) over the blocks of nodes.
template <typename Body>
void ParallelNodes(ffi::ThreadPool& pool, const Layer& layer, int64_t count, const Body& body) {
  Parallel(pool, count, [&](int64_t task) {
    const Range blocks = RangeOf(layer.blocks(), task, count);
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
      body(task, block * kNodes, std::min(kNodes, layer.nodes - block * kNodes));
  });
}

// The arrays of one task: X, Y, their cotangents, one negated coefficient, zeros, y.
struct Rows {
  float *x, *y, *d_x, *d_y, *minus, *zeros, *times;

  static int64_t size(const Layer& layer) {
    return (4 * layer.coefficients + layer.times + 1) * kNodes * layer.width + layer.width;
  }
  Rows(const Layer& layer, Scratch& scratch)
      : x(scratch.take(layer.coefficients * kNodes * layer.width)),
        y(scratch.take(layer.coefficients * kNodes * layer.width)),
        d_x(scratch.take(layer.coefficients * kNodes * layer.width)),
        d_y(scratch.take(layer.coefficients * kNodes * layer.width)),
        minus(scratch.take(kNodes * layer.width)),
        zeros(scratch.take_zeros(layer.width)),
        times(scratch.take(layer.times * kNodes * layer.width)) {}
};

// X, Y and y of a block.
inline void Transform(const Layer& layer, int64_t first, int64_t rows, const Rows& block) {
  const int64_t width = layer.width, stride = kNodes * width;
  Combine(layer.forward, layer.coefficients, layer.times, layer.features + first * width,
          layer.nodes * width, rows * width, block.x, stride);
  Mix(layer, layer.kernel, block.x, rows, block.minus, block.zeros, block.y);
  Combine(layer.inverse, layer.times, layer.coefficients, block.y, stride, rows * width,
          block.times, stride);
}

inline std::vector<Rows> MakeRows(const Layer& layer, int64_t count,
                                  std::vector<std::unique_ptr<Scratch>>& scratch) {
  std::vector<Rows> rows;
  for (int64_t task = 0; task < count; ++task) {
    scratch.push_back(std::make_unique<Scratch>(Rows::size(layer)));
    rows.emplace_back(layer, *scratch.back());
  }
  return rows;
}

inline void Compute(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const int64_t count = NumTasks(pool, layer.blocks()), width = layer.width;
  std::vector<std::unique_ptr<Scratch>> scratch;
  const std::vector<Rows> all = MakeRows(layer, count, scratch);
  float* out = OutData(rets, kOut);
  ParallelNodes(pool, layer, count, [&](int64_t task, int64_t first, int64_t rows) {
    const Rows& block = all[task];
    Transform(layer, first, rows, block);
    for (int64_t time = 0; time < layer.times; ++time) {
      const float* y = block.times + time * kNodes * width;
      const int64_t at = (time * layer.nodes + first) * width;
      for (int64_t k = 0; k < rows * width; k += kLanes) {
        const Vector v = Load(y + k);
        Store(out + at + k, Load(layer.features + at + k) + (v >= 0.0f ? v : v * kNegativeSlope));
      }
    }
  });
}

struct KernelSum {
  float* kernel;

  static int64_t size(const Layer& layer) { return 2 * layer.modes * layer.square(); }
  KernelSum(const Layer& layer, Scratch& scratch) : kernel(scratch.take_zeros(size(layer))) {}
};

// Down from d_y to d_x, and the gradient of the kernel.
inline void DescendMix(const Layer& layer, const float* transposed, const Rows& block, int64_t rows,
                       float* d_kernel) {
  const int64_t width = layer.width, stride = kNodes * width;
  ForModes(
      layer,
      [&](int64_t b) {
        AddOuter(block.x + b * stride, block.d_y + b * stride, rows, width, width,
                 d_kernel + layer.real_part(b));
        Multiply(block.d_y + b * stride, transposed + layer.real_part(b), rows, width, width,
                 block.zeros, block.d_x + b * stride);
      },
      [&](int64_t b) {
        const float *re = block.x + b * stride, *im = re + stride;
        const float *d_re = block.d_y + b * stride, *d_im = d_re + stride;
        const float *r_re = transposed + layer.real_part(b);
        const float *r_im = transposed + layer.imaginary_part(b);
        float *dx_re = block.d_x + b * stride, *dx_im = dx_re + stride;
        Negate(d_re, rows * width, block.minus);
        AddOuter(re, d_re, rows, width, width, d_kernel + layer.real_part(b));
        AddOuter(im, d_im, rows, width, width, d_kernel + layer.real_part(b));
        AddOuter(re, d_im, rows, width, width, d_kernel + layer.imaginary_part(b));
        AddOuter(im, block.minus, rows, width, width, d_kernel + layer.imaginary_part(b));
        Multiply(d_re, r_re, rows, width, width, block.zeros, dx_re);
        MultiplyAdd(d_im, r_im, rows, width, width, dx_re);
        Multiply(d_im, r_re, rows, width, width, block.zeros, dx_im);
        MultiplyAdd(block.minus, r_im, rows, width, width, dx_im);
      });
}

// Results: the gradients of h and of the kernel.
inline void ComputeVjp(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const Layer layer(args);
  const float* d_out = InData(args, kCotangent);
  const int64_t count = NumTasks(pool, layer.blocks()), width = layer.width;
  const int64_t kernel_size = KernelSum::size(layer), stride = kNodes * width;
  Scratch shared(kernel_size + 2 * layer.times * layer.coefficients);
  float* transposed = shared.take(kernel_size);
  for (int64_t at = 0; at < kernel_size; at += layer.square())
    Transpose(layer.kernel + at, width, width, transposed + at);
  float* forward_transposed = shared.take(layer.times * layer.coefficients);
  float* inverse_transposed = shared.take(layer.times * layer.coefficients);
  Transpose(layer.forward, layer.coefficients, layer.times, forward_transposed);
  Transpose(layer.inverse, layer.times, layer.coefficients, inverse_transposed);

  std::vector<std::unique_ptr<Scratch>> scratch, sum_scratch;
  const std::vector<Rows> all = MakeRows(layer, count, scratch);
  std::vector<Carried<KernelSum>> sums;
  for (int64_t task = 0; task < count; ++task) {
    sum_scratch.push_back(std::make_unique<Scratch>(Carried<KernelSum>::size(layer)));
    sums.emplace_back(layer, *sum_scratch.back());
  }
  float* d_features = OutData(rets, kFeatures);
  ParallelNodes(pool, layer, count, [&](int64_t task, int64_t first, int64_t rows) {
    const Rows& block = all[task];
    Transform(layer, first, rows, block);
    for (int64_t time = 0; time < layer.times; ++time) {
      float* y = block.times + time * stride;
      const float* d = d_out + (time * layer.nodes + first) * width;
      for (int64_t k = 0; k < rows * width; k += kLanes) {
        const Vector v = Load(d + k);
        Store(y + k, Load(y + k) >= 0.0f ? v : v * kNegativeSlope);
      }
    }
    Combine(inverse_transposed, layer.coefficients, layer.times, block.times, stride, rows * width,
            block.d_y, stride);
    DescendMix(layer, transposed, block, rows, sums[task].next().kernel);
    Combine(forward_transposed, layer.times, layer.coefficients, block.d_x, stride, rows * width,
            d_features + first * width, layer.nodes * width);
    for (int64_t time = 0; time < layer.times; ++time) {
      const int64_t at = (time * layer.nodes + first) * width;
      for (int64_t k = 0; k < rows * width; k += kLanes)
        Add(d_features + at + k, Load(d_out + at + k));
    }
  });
  for (auto& sum : sums) sum.Carry();
  Gather(sums, &KernelSum::kernel, Out(rets, kKernel));
}

}  // namespace egno::temporal_conv

#endif  // EGNO_JAX_OPS_KERNELS_TEMPORAL_CONV_H_
