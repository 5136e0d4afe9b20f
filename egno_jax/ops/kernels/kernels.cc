// The kernels as XLA calls them.

#include "base.h"
#include "message_sums.h"
#include "node_update.h"

namespace egno {
namespace {

ffi::Error MessageSums(ffi::ThreadPool pool, Buffer features, Buffer positions,
                       Buffer edge_features, Buffer kernel_1, Buffer bias_1, Buffer kernel_2,
                       Buffer bias_2, Buffer kernel_3, Buffer bias_3, Buffer kernel_4,
                       Buffer bias_4, Indices senders, Indices receivers, Result messages,
                       Result steps, Result u, Result v) {
  return message_sums::Compute(pool,
                               {features, positions, edge_features, kernel_1, bias_1, kernel_2,
                                bias_2, kernel_3, bias_3, kernel_4, bias_4, senders, receivers},
                               messages, steps, u, v);
}

ffi::Error MessageSumsVjp(ffi::ThreadPool pool, Buffer features, Buffer positions,
                          Buffer edge_features, Buffer kernel_1, Buffer bias_1, Buffer kernel_2,
                          Buffer bias_2, Buffer kernel_3, Buffer bias_3, Buffer kernel_4,
                          Buffer bias_4, Indices senders, Indices receivers, Buffer u, Buffer v,
                          Buffer d_messages, Buffer d_steps, Result d_features, Result d_positions,
                          Result d_edge_features, Result d_kernel_1, Result d_bias_1,
                          Result d_kernel_2, Result d_bias_2, Result d_kernel_3, Result d_bias_3,
                          Result d_kernel_4, Result d_bias_4) {
  return message_sums::ComputeVjp(
      pool,
      {features, positions, edge_features, kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3,
       kernel_4, bias_4, senders, receivers},
      u, v, d_messages, d_steps,
      {d_features, d_positions, d_edge_features, d_kernel_1, d_bias_1, d_kernel_2, d_bias_2,
       d_kernel_3, d_bias_3, d_kernel_4, d_bias_4});
}

ffi::Error NodeUpdate(ffi::ThreadPool pool, Buffer features, Buffer messages, Buffer kernel_1,
                      Buffer bias_1, Buffer kernel_2, Buffer bias_2, Buffer kernel_3,
                      Buffer bias_3, Buffer kernel_4, Buffer bias_4, Result new_features,
                      Result factors, Result a, Result c) {
  return node_update::Compute(pool,
                              {features, messages, kernel_1, bias_1, kernel_2, bias_2, kernel_3,
                               bias_3, kernel_4, bias_4},
                              new_features, factors, a, c);
}

ffi::Error NodeUpdateVjp(ffi::ThreadPool pool, Buffer features, Buffer messages, Buffer kernel_1,
                         Buffer bias_1, Buffer kernel_2, Buffer bias_2, Buffer kernel_3,
                         Buffer bias_3, Buffer kernel_4, Buffer bias_4, Buffer a, Buffer c,
                         Buffer d_new_features, Buffer d_factors, Result d_features, Result d_messages, Result d_kernel_1,
                         Result d_bias_1, Result d_kernel_2, Result d_bias_2, Result d_kernel_3,
                         Result d_bias_3, Result d_kernel_4, Result d_bias_4) {
  return node_update::ComputeVjp(pool,
                                 {features, messages, kernel_1, bias_1, kernel_2, bias_2, kernel_3,
                                  bias_3, kernel_4, bias_4},
                                 a, c, d_new_features, d_factors,
                                 {d_features, d_messages, d_kernel_1, d_bias_1, d_kernel_2,
                                  d_bias_2, d_kernel_3, d_bias_3, d_kernel_4, d_bias_4});
}

}  // namespace
}  // namespace egno

// Kernels and biases of four layers.
#define EGNO_ARG_LAYERS                                                       \
  .Arg<egno::Buffer>().Arg<egno::Buffer>().Arg<egno::Buffer>().Arg<egno::Buffer>() \
      .Arg<egno::Buffer>().Arg<egno::Buffer>().Arg<egno::Buffer>().Arg<egno::Buffer>()
#define EGNO_RET_LAYERS                                                       \
  .Ret<egno::Buffer>().Ret<egno::Buffer>().Ret<egno::Buffer>().Ret<egno::Buffer>() \
      .Ret<egno::Buffer>().Ret<egno::Buffer>().Ret<egno::Buffer>().Ret<egno::Buffer>()

#define EGNO_MESSAGE_SUMS_ARGUMENTS                                   \
  .Ctx<xla::ffi::ThreadPool>()                                        \
      .Arg<egno::Buffer>().Arg<egno::Buffer>().Arg<egno::Buffer>()    \
      EGNO_ARG_LAYERS.Arg<egno::Indices>().Arg<egno::Indices>()

#define EGNO_NODE_UPDATE_ARGUMENTS \
  .Ctx<xla::ffi::ThreadPool>().Arg<egno::Buffer>().Arg<egno::Buffer>() EGNO_ARG_LAYERS

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    egno_message_sums, egno::MessageSums,
    xla::ffi::Ffi::Bind() EGNO_MESSAGE_SUMS_ARGUMENTS.Ret<egno::Buffer>()
        .Ret<egno::Buffer>()
        .Ret<egno::Buffer>()
        .Ret<egno::Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(egno_message_sums_vjp, egno::MessageSumsVjp,
                              xla::ffi::Ffi::Bind() EGNO_MESSAGE_SUMS_ARGUMENTS.Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Ret<egno::Buffer>()
                                  .Ret<egno::Buffer>()
                                  .Ret<egno::Buffer>() EGNO_RET_LAYERS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    egno_node_update, egno::NodeUpdate,
    xla::ffi::Ffi::Bind() EGNO_NODE_UPDATE_ARGUMENTS.Ret<egno::Buffer>()
        .Ret<egno::Buffer>()
        .Ret<egno::Buffer>()
        .Ret<egno::Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(egno_node_update_vjp, egno::NodeUpdateVjp,
                              xla::ffi::Ffi::Bind() EGNO_NODE_UPDATE_ARGUMENTS.Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Arg<egno::Buffer>()
                                  .Ret<egno::Buffer>()
                                  .Ret<egno::Buffer>() EGNO_RET_LAYERS);
