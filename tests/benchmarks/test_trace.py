"""Profiles: instructions are found, their own times add up, and each has its kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace

PROGRAM = """HloModule jit_f

%fused_computation (p: f32[8,4], i: s32[3,1]) -> f32[3,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  ROOT %gather.1 = f32[3,4]{1,0} gather(%p, %i), offset_dims={1}
}

%moves (p: f32[4,8]) -> f32[8,4] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  ROOT %transpose.2 = f32[8,4]{1,0} transpose(%p.1), dimensions={1,0}
}

%body (s: (s32[], f32[3,4])) -> (s32[], f32[3,4]) {
  %s = (s32[], f32[3,4]{1,0}) parameter(0)
  %dot.3 = f32[3,4]{1,0} dot(%s, %s), lhs_contracting_dims={1}
  ROOT %tuple.1 = (s32[], f32[3,4]{1,0}) tuple(%s, %dot.3)
}

ENTRY %main (a: f32[4,8]) -> f32[3,4] {
  %a = f32[4,8]{1,0} parameter(0)
  %copy_fusion = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%moves
  %fusion.1 = f32[3,4]{1,0} fusion(%copy_fusion), kind=kLoop, calls=%fused_computation
  %while.1 = (s32[], f32[3,4]{1,0}) while(%fusion.1), condition=%c, body=%body
  %call.9 = f32[3,4]{1,0} custom-call(%while.1), custom_call_target="message_sums"
  ROOT %add.1 = f32[3,4]{1,0} add(%call.9, %call.9)
}
"""


def test_kinds():
    known = trace.kinds(PROGRAM)
    assert known["copy_fusion"] == "copy"
    assert known["fusion.1"] == "gather"
    assert known["dot.3"] == "dot"
    assert known["while.1"] == "while"
    assert known["call.9"] == "custom call message_sums"
    assert known["add.1"] == "elementwise"


def test_own_times_leave_out_what_runs_inside():
    def event(name, start, duration, thread=1, **more):
        return {
            "ph": "X",
            "pid": 1,
            "tid": thread,
            "ts": start,
            "dur": duration,
            "name": name,
            **more,
        }

    events = [
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name"},
        event("while.1", 0, 100),
        event("dot.3", 10, 30),
        event("dot.3", 50, 20),
        event("add.1", 120, 5),
        event("Execute", 0, 200, thread=2),
        event("kernel_7", 0, 8, thread=2, args={"hlo_op": "add.1"}),
        {},
    ]
    totals = trace.own_times(events, trace.kinds(PROGRAM))
    assert totals["while.1"] == (pytest.approx(50e-6), 1)
    assert totals["dot.3"] == (pytest.approx(50e-6), 2)
    assert totals["add.1"] == (pytest.approx(13e-6), 2)
    assert "Execute" not in totals
    grouped = trace.by_kind(totals, trace.kinds(PROGRAM))
    assert grouped["kinds"]["dot"]["seconds"] == pytest.approx(50e-6 / trace._STEPS)
    assert grouped["ops"][-1]["name"] == "add.1"


def test_a_program_of_this_jax_is_read():
    program = jax.jit(lambda x: jnp.sin(x) @ x)
    compiled = program.lower(jnp.ones((64, 64))).compile()

    def repeat(times):
        for _ in range(times):
            jax.block_until_ready(compiled(jnp.ones((64, 64))))

    found = trace.profile(repeat, compiled.as_text())
    assert found["step_seconds"] > 0
    assert sum(kind["seconds"] for kind in found["kinds"].values()) > 0
