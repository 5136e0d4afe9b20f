// The kernels' entry points for XLA.

#include <exception>

#include "base.h"
#include "message_sums.h"
#include "node_update.h"
#include "temporal_conv.h"
#include "vector_sums.h"

namespace egno {
namespace {

// A kernel as a handler: an exception (out of memory) becomes an error of the computation.
template <auto kKernel>
ffi::Error Guarded(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  try {
    kKernel(pool, args, rets);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace
}  // namespace egno

#define EGNO_HANDLER(symbol, kernel)                                        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, egno::Guarded<egno::kernel>,        \
                                xla::ffi::Ffi::Bind()                       \
                                    .Ctx<xla::ffi::ThreadPool>()            \
                                    .RemainingArgs()                        \
                                    .RemainingRets())

EGNO_HANDLER(egno_message_sums, message_sums::Compute);
EGNO_HANDLER(egno_message_sums_vjp, message_sums::ComputeVjp);
EGNO_HANDLER(egno_feature_update, node_update::Compute<true>);
EGNO_HANDLER(egno_feature_update_vjp, node_update::ComputeVjp<true>);
EGNO_HANDLER(egno_velocity_factor, node_update::Compute<false>);
EGNO_HANDLER(egno_velocity_factor_vjp, node_update::ComputeVjp<false>);
EGNO_HANDLER(egno_temporal_conv, temporal_conv::Compute);
EGNO_HANDLER(egno_temporal_conv_vjp, temporal_conv::ComputeVjp);
EGNO_HANDLER(egno_vector_sums, vector_sums::Compute);
EGNO_HANDLER(egno_vector_sums_vjp, vector_sums::ComputeVjp);
