"""A spatial layer that carries tensors of any degree: `EGNOConfig(layer="steerable")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.config import EGNOConfig
from egno_jax.nn.block import State, layer_options, register_layer
from egno_jax.nn.linear import MLP, Linear

if TYPE_CHECKING:
    import e3nn_jax as e3nn
    from jaxtyping import Array, Float

# Initial size of the factors of what moves nodes.
_STEP_SCALE = 0.1


@register_layer("steerable")
class SteerableLayer(nn.Module):
    """Passes messages between nodes that carry K tensors T of each degree l and parity.

    The degrees are 1 to `config.max_degree`, K is `config.num_vectors`. Y are spherical harmonics,
    `*` the tensor products of all degrees, L linear maps of channels, d the number of incoming
    edges, and `r_ij = x_i - x_j + s_ij`:

        m_ij = LN(SiLU(phi_m([h_i, h_j, |r_ij|^2, |T_i - T_j|^2, e_ij])))
        U_i = d^(-1/2) sum_j w(m_ij) ([1, L T_j] * Y(r_ij)),    V_i = [1, L T_i, U_i] * Y(v_i)
        T_i <- T_i + g(h_i) L [U_i, V_i],    v_i <- v_i + L T_i
        x_i <- x_i + mean_j f(m_ij) r_ij + phi_v(h_i) v_i + sum_k phi_k(h_i) T_ik
        h_i <- h_i + phi_h(LN([h_i, d^(-1/2) sum_j m_ij, |T_i|^2, scalars of U_i and V_i]))

    where the last T_ik are its vectors. With `config.symmetry = "SO(3)"` scalars that change sign
    under reflections are among the scalars too.

    Sources: Thomas et al., "Tensor field networks", 2018; Brandstetter et al., "Geometric and
    physical quantities improve E(3) equivariant message passing", 2022.
    """

    config: EGNOConfig

    @staticmethod
    def carries(config: EGNOConfig) -> dict[str, str]:
        """Returns the irreps that the layer carries from block to block."""
        degrees = range(1, config.max_degree + 1)
        types = (f"{config.num_vectors}x{degree}{p}" for degree in degrees for p in "eo")
        return {"tensors": " + ".join(types)}

    @nn.compact
    def __call__(self, state: State, graph: jraph.GraphsTuple) -> State:
        """Returns the state after one round of messages."""
        import e3nn_jax as e3nn

        config, (x, v, h, extra) = self.config, state
        width, num, tensors = config.hidden_dim, config.num_vectors, extra["tensors"]
        options = layer_options(config)
        edges = ops.EdgeList(graph.senders, graph.receivers, x.shape[1])
        degree = jnp.maximum(edges.in_degree(x.dtype), 1)
        r = ops.displacements(edges, x, graph_lib.shifts_of(graph))
        messages = self._messages(edges, r, h, tensors, graph)

        sent = self._mix("sent", tensors)
        sent = e3nn.IrrepsArray(sent.irreps, edges.of_senders(sent.array))
        products = self._products(sent, r)
        weights = Linear(products.irreps.num_irreps, name="message_weights", **options)(messages)
        products = products * weights.astype(x.dtype)
        sums = edges.to_receivers(products.array) * jax.lax.rsqrt(degree)
        sums = e3nn.IrrepsArray(products.irreps, sums)
        factors = Linear(1, name="message_step", **options)(messages).astype(x.dtype)
        x = x + edges.to_receivers(r * factors) / degree

        of_velocity = self._products(e3nn.concatenate([self._mix("kept", tensors), sums]), v)
        update = e3nn.concatenate([sums, of_velocity]).regroup()
        scalars = update.filter(keep=["0e", "0o"] if config.symmetry == "SO(3)" else "0e").array
        change = self._mix("update", update.filter(keep=list({ir for _, ir in tensors.irreps})))
        gates = Linear(tensors.irreps.num_irreps, name="gates", **options)(h)
        change = change * jax.nn.sigmoid(gates).astype(x.dtype)
        tensors = tensors + change
        norms = e3nn.norm(tensors, squared=True, per_irrep=True).array
        collected = edges.to_receivers(messages) * jax.lax.rsqrt(degree).astype(messages.dtype)
        inputs = jnp.concatenate([h, collected, *(a.astype(h.dtype) for a in (norms, scalars))], -1)
        h = h + MLP(width, width, name="feature_mlp", **options)(ops.standardized(inputs))

        factors = MLP(width, 1 + num, name="step_mlp", **options)(h).astype(x.dtype)
        vectors = tensors.filter(keep="1o")
        step = e3nn.sum((vectors * factors[..., 1:]).mul_to_axis(num), axis=-2).array
        x = x + _STEP_SCALE * (factors[..., :1] * v + step)
        v = v + _STEP_SCALE * self._mix("velocity", vectors, 1).array
        return State(x, v, h, {"tensors": tensors})

    def _messages(
        self,
        edges: ops.EdgeList,
        r: Float[Array, "P E 3"],
        h: Float[Array, "P N C"],
        tensors: e3nn.IrrepsArray,
        graph: jraph.GraphsTuple,
    ) -> Float[Array, "P E C"]:
        """Returns the invariant messages m_ij."""
        import e3nn_jax as e3nn

        width, options = self.config.hidden_dim, layer_options(self.config)
        difference = edges.of_receivers(tensors.array) - edges.of_senders(tensors.array)
        difference = e3nn.IrrepsArray(tensors.irreps, difference)
        inputs = [
            edges.of_receivers(h),
            edges.of_senders(h),
            ops.squared_norm(r),
            e3nn.norm(difference, squared=True, per_irrep=True).array,
        ]
        if graph.edges is not None:
            of_edges = graph.edges["features"]
            inputs.append(jnp.broadcast_to(of_edges, (r.shape[0], *of_edges.shape)))
        inputs = jnp.concatenate([part.astype(h.dtype) for part in inputs], axis=-1)
        messages = MLP(width, width, name="message_mlp", **options)(inputs)
        return ops.standardized(jax.nn.silu(messages))

    def _products(self, x: e3nn.IrrepsArray, vectors: Float[Array, "... 3"]) -> e3nn.IrrepsArray:
        """Returns `[1, x] * Y(vectors)`, of degrees up to `max_degree`."""
        import e3nn_jax as e3nn

        degrees = range(self.config.max_degree + 1)
        harmonics = e3nn.spherical_harmonics(
            [e3nn.Irrep(degree, (-1) ** degree) for degree in degrees],
            e3nn.IrrepsArray("1o", vectors / jnp.sqrt(1 + ops.squared_norm(vectors))),
            normalize=False,
        )
        allowed = [e3nn.Irrep(degree, parity) for degree in degrees for parity in (1, -1)]
        products = e3nn.tensor_product(x, harmonics, filter_ir_out=allowed)
        return e3nn.concatenate([harmonics, products]).regroup()

    def _mix(self, name: str, x: e3nn.IrrepsArray, num: int | None = None) -> e3nn.IrrepsArray:
        """Mixes the copies of each irrep exactly; returns `num` of each, by default K."""
        import e3nn_jax as e3nn

        num, parts = num or self.config.num_vectors, []
        x = x.regroup()
        for (copies, ir), chunk in zip(x.irreps, x.chunks, strict=True):
            mix = nn.Dense(
                num,
                use_bias=False,
                kernel_init=nn.initializers.normal(copies**-0.5),
                param_dtype=self.config.param_dtype,
                precision="highest",
                name=f"{name}_{ir}",
            )
            mixed = jnp.swapaxes(mix(jnp.swapaxes(chunk, -1, -2)), -1, -2)
            parts.append(
                e3nn.IrrepsArray(f"{num}x{ir}", mixed.reshape(*x.shape[:-1], num * ir.dim))
            )
        return e3nn.concatenate(parts)
