"""Tests of bar_jax/inspection/trace.py on traces made by hand, whose sums are known."""

import pytest
from jax.profiler import ProfileData

from bar_jax.inspection import trace
from bar_jax.inspection.trace import Event


def names(told, field="seconds"):
    return {each["name"]: each[field] for each in told["operations"]}


def test_idle_is_what_no_line_covers():
    """0..4 and 2..6 overlap on two streams, 8..10 follows: 8 of 10 ns are busy."""
    told = trace.summarise([[Event("a", 0, 4e9), Event("c", 8e9, 10e9)], [Event("b", 2e9, 6e9)]])
    assert told["seconds"] == 10 and told["idle_share"] == pytest.approx(0.2)
    assert names(told) == {"a": 4, "b": 4, "c": 2}
    assert names(told, "share") == {"a": 0.4, "b": 0.4, "c": 0.2}


def test_a_loop_keeps_what_its_operations_leave():
    events = [Event("while", 0, 10e9), Event("dot", 1e9, 4e9), Event("dot", 5e9, 9e9)]
    inner = [Event("add", 2e9, 3e9)]
    told = trace.summarise([events + inner])
    assert names(told) == {"while": 3, "dot": 6, "add": 1}
    assert names(told, "count") == {"while": 1, "dot": 2, "add": 1}


def test_the_costliest_come_first_and_no_more_than_asked_for():
    events = [Event(f"op{i}", 100 * i, 100 * i + i + 1) for i in range(20)]
    told = trace.summarise([events], count=3)
    assert [each["name"] for each in told["operations"]] == ["op19", "op18", "op17"]
    assert sum(each["share"] for each in told["operations"]) < 1


def test_nothing_ran():
    assert trace.summarise([])["operations"] == []


def plane(name, lines, names, stat=None):
    """The text of a plane; lines: name -> [(event's number, start, duration in ps)]."""
    text = f'planes {{ name: "{name}"\n'
    for line, events in lines.items():
        text += f'lines {{ name: "{line}"\n'
        for number, start, duration in events:
            op = f'stats {{ metadata_id: 1 str_value: "{stat}" }}' if stat else ""
            text += f"events {{ metadata_id: {number} offset_ps: {start} "
            text += f"duration_ps: {duration} {op} }}\n"
        text += "}\n"
    for number, each in names.items():
        text += f"event_metadata {{ key: {number} value {{ id: {number} "
        text += f'name: "{each}" }} }}\n'
    return text + 'stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }\n}\n'


def lines_of(*planes):
    return trace._device_lines(ProfileData.from_text_proto("".join(planes)))


HOST = plane("/host:CPU", {"python": [(1, 0, 9000)]}, {1: "main"})


def test_a_gpu_has_its_streams_and_kernels_of_all_layers_are_one():
    lines = {"Stream #7(Compute)": [(1, 0, 2000), (2, 3000, 1000)], "Steps": [(3, 0, 9000)]}
    kernels = {1: "loop_add_fusion_3", 2: "loop_add_fusion.14", 3: "step"}
    device, found = lines_of(HOST, plane("/device:GPU:0", lines, kernels))
    assert device == "/device:GPU:0"
    assert [[event.name for event in line] for line in found] == [["loop_add_fusion"] * 2]
    assert sum(event.end - event.start for event in found[0]) == 3  # ns


def test_a_librarys_kernel_says_what_it_was_called_for():
    lines = {"Stream #7": [(1, 0, 2000)]}
    _, [[event]] = lines_of(plane("/device:GPU:0", lines, {1: "nvjet_tst_64x8"}, "custom-call.12"))
    assert event.name == "custom-call: nvjet_tst_64x8"


def test_a_tpu_has_one_line_of_operations():
    lines = {"XLA Modules": [(1, 0, 9000)], "XLA Ops": [(2, 0, 1000), (3, 1000, 1000)]}
    names = {1: "jit_draw", 2: "%fusion.5 = bf16[8] fusion(%x)", 3: "%copy.1 = f32[] copy(%y)"}
    device, [found] = lines_of(HOST, plane("/device:TPU:0", lines, names))
    assert device == "/device:TPU:0" and [event.name for event in found] == ["fusion", "copy"]


def test_a_cpus_operations_are_those_that_are_marked():
    marked = plane("/host:CPU", {"a": [(1, 0, 1000), (2, 1000, 5)]}, {1: "dot.3", 2: "end: dot.3"})
    assert lines_of(marked) == ("/host:CPU", [])
    marked = marked.replace("ps: 1000  }", 'ps: 1000 stats { metadata_id: 1 str_value: "dot.3" } }')
    assert [event.name for event in lines_of(marked)[1][0]] == ["dot"]
