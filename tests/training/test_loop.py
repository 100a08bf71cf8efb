"""Tests of bar_jax/training/loop.py; real runs that are cut off are in tests/test_resume.py."""

import functools
import itertools
import json
import logging
import os
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bar_jax.config import default_config
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, progress
from bar_jax.runtime.errors import InputError, NonFinite
from bar_jax.training import checkpoint, gan, loop, optimizer, save_clock
from bar_jax.training import step as step_lib
from bar_jax.training.step import TrainState, UpdateRule

BATCH = 8


def section(**changes) -> ConfigDict:
    """A short training of a tiny model."""
    config = default_config().train_tokenizer
    config.update(dict(batch_size=BATCH, steps=6, epochs=0.0, ema_decay=0.9, keep_checkpoints=9))
    config.update(dict(log_every=1, save_every=2, evaluate_every=3))
    config.optimizer.update(dict(learning_rate=0.1, warmup_steps=0, warmup_epochs=0.0))
    config.update(changes)
    return config


def init_params(key):
    return {"kernel": jax.random.normal(key, (4, 4)), "bias": jnp.zeros(4)}


def squares(params, batch, keys, frozen, nan_at=-1):
    """A regression with noise from each example's key; NaN in one step if that is asked for."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys.examples)
    error = (batch["x"] + 0.1 * noise) @ params["kernel"] + params["bias"][None] - batch["x"]
    weight = jnp.where(keys.step == nan_at, jnp.nan, 1.0)
    return {"loss": (weight * jnp.sum(error**2), jnp.float32(batch["x"].shape[0]))}


def rule(section, durations):
    """How the section says that parameters are updated."""
    rate = optimizer.from_section(section.optimizer, durations)
    return UpdateRule(*rate, section.ema_decay, section.accumulate)


class Fake:
    """A stage whose calls are written down in `calls`."""

    def __init__(self, folder, **changes):
        self.folder, self.section, self.calls = folder, section(**changes), []
        self.closed, self.loss_fn, self.profile = 0, squares, ""

    def make_program(self, durations):
        return step_lib.make_program(init_params, self.loss_fn, rule(self.section, durations))

    def batches(self, start):
        try:
            for step in itertools.count(start):
                self.calls.append(f"draw {step}")
                yield {"x": np.random.default_rng(step).normal(size=(BATCH, 4)).astype("f4")}
        finally:
            self.closed += 1

    def evaluate(self, state, writer):
        self.calls.append(f"evaluate {int(state.step)}")
        return {"score": float(jnp.sum(state.params["bias"]))}

    def train(self, init_from=None):
        stage = loop.Stage(
            name="train_fake",
            section=self.section,
            seed=0,
            examples=100,
            make_program=self.make_program,
            batches=self.batches,
            evaluate=self.evaluate,
            folder=self.folder,
            init_from=init_from,
            config={"seed": 0, "profile": self.profile},
            advice="read faster",
        )
        return loop.train(stage, mesh_lib.make_mesh(devices=jax.devices()[:1]))

    def saved(self):
        return sorted(int(path.name) for path in self.folder.iterdir())

    def logged(self, name):
        """Values by step of what was logged under a name."""
        lines = map(json.loads, (self.folder.parent / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line[name] for line in lines if name in line}

    def params(self, folder=None):
        mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh_lib.replicated(mesh)),
            jax.eval_shape(init_params, jax.random.key(0)),
        )
        return jax.device_get(checkpoint.restore_params(folder or self.folder, shapes)[0])


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path / "run" / "fake")


@pytest.fixture
def sigterm():
    """SIGTERM is remembered, as in a job; afterwards nothing is."""
    before = signal.getsignal(signal.SIGTERM)
    preemption.install()
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    preemption.install()
    signal.signal(signal.SIGTERM, before)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_order_is_evaluate_save_draw_step(fake, monkeypatch):
    """Evaluation every 3 steps, saving every 2, both at the end and neither at the start."""

    def save(manager, state, config, results, original=checkpoint.save):
        fake.calls.append(f"save {int(state.step)}")
        original(manager, state, config, results)

    monkeypatch.setattr(checkpoint, "save", save)

    steps, results = fake.train()
    assert steps == 6 and results.keys() == {"score", "seconds"}
    # The numbers are the state's own: draw n is followed by the step that makes it n + 1.
    assert ", ".join(fake.calls) == (
        "draw 0, draw 1, save 2, draw 2, evaluate 3, draw 3, save 4, draw 4, draw 5, "
        "evaluate 6, save 6"
    )


def test_data_is_closed_at_the_end(fake):
    fake.train()
    assert fake.closed == 1


@pytest.mark.parametrize("log_every, first, saved", [(1, 4, [2, 4]), (3, 4, [2, 4])])
def test_a_loss_that_is_not_finite_ends_the_run(fake, log_every, first, saved):
    """The step from 4 to 5 gives NaN; it is seen when 5 or, at the latest, 6 is logged."""
    fake.section.log_every = log_every
    fake.loss_fn = functools.partial(squares, nan_at=4)
    seen = 5 if log_every == 1 else 6
    message = f"train_fake: loss became nan between steps {first} and {seen}; .* step 4"
    with pytest.raises(NonFinite, match=message):
        fake.train()
    assert fake.saved() == saved
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fake.params()))
    assert fake.closed == 1


def test_a_loss_that_is_not_finite_from_the_start(fake):
    fake.loss_fn = functools.partial(squares, nan_at=0)
    with pytest.raises(NonFinite, match="between steps 0 and 1; no checkpoint was saved"):
        fake.train()
    assert not fake.saved()


def test_a_gradient_that_is_not_finite_ends_the_run(fake):
    """The loss is finite: the square root of zero."""

    def root(params, batch, keys, frozen):
        zero = 0.0 * jnp.sum(params["kernel"] ** 2)
        return {"loss": (jnp.sqrt(zero), jnp.float32(BATCH))}

    fake.loss_fn = root
    with pytest.raises(NonFinite, match="grad_norm became nan between steps 0 and 1"):
        fake.train()


def test_a_finished_stage_does_nothing(fake):
    """It returns what it returned before, also where the run was killed before anyone used it."""
    first = fake.train()
    fake.calls.clear()
    assert fake.train() == first
    assert not fake.calls


def test_a_stage_that_shrank_is_refused(fake):
    """As when its duration is in epochs and the data set has lost images."""
    fake.train()
    fake.section.steps = 4
    with pytest.raises(
        InputError, match="steps: found 4 steps for 100 images, expected at least 6"
    ):
        fake.train()


def test_a_stopped_run_goes_on_to_the_same_end(fake, tmp_path, sigterm):
    """SIGTERM in every step: each run makes one step; parameters, logs and results are equal.

    The last one too is saved and not evaluated before the next start.
    """
    whole = Fake(tmp_path / "whole" / "fake")
    expected = whole.train()[1]
    original = fake.batches
    fake.batches = lambda start: (sigterm() or batch for batch in original(start))
    for step in range(1, 7):
        preemption.install()
        with pytest.raises(preemption.Preempted, match=f"^train_fake: saved at step {step}$"):
            fake.train()
        assert fake.saved()[-1] == step
    preemption.install()
    results = fake.train()[1]
    assert results["score"] == expected["score"]
    assert [call for call in fake.calls if "evaluate" in call] == ["evaluate 3", "evaluate 6"]
    assert fake.train()[1] == results  # it is finished now
    equal(fake.params(), whole.params())
    for name in ("loss", "score"):
        assert fake.logged(name) == whole.logged(name)


def game(durations, section):
    """A discriminator from step 2 on: `critic` is moved by the batch and moves the network."""

    def network_loss(params, batch, keys, frozen, adversary=None):
        sums = squares(params, batch, keys, frozen)
        if adversary is None:
            return sums
        (total, count), critic = sums["loss"], adversary.params["critic"]
        return {"loss": (total + adversary.vectors["v"] * critic * params["bias"].sum(), count)}

    def discriminators_loss(params, batch, keys, frozen, network, vectors):
        error = params["critic"] - batch["x"].sum() - network["bias"].sum()
        return {"loss": (error**2 + frozen["scale"] * params["critic"] ** 2, jnp.ones(()))}

    own = durations._replace(constant=0)  # the learning rate's cosine begins at once
    discriminator = gan.Gan(
        init=lambda key: ({"critic": jnp.array(1.0)}, {"v": jnp.array(1.0)}),
        power_iteration=lambda params, vectors: {"v": 0.5 * vectors["v"] + 0.1 * params["critic"]},
        loss_fn=discriminators_loss,
        rule=rule(section, own._replace(steps=own.steps - 2, warmup=0)),
        start=2,
    )
    frozen = {"scale": jnp.array(0.1)}
    return gan.make_program(init_params, network_loss, rule(section, own), discriminator, frozen)


def test_a_stopped_game_goes_on_to_the_same_end(fake, tmp_path, sigterm):
    """Stopped after every step, so before the discriminator is trained and in either's turn."""
    whole = Fake(tmp_path / "whole" / "fake")
    for one in (fake, whole):
        one.make_program = functools.partial(game, section=one.section)
    whole.train()
    original = fake.batches
    fake.batches = lambda start: (sigterm() or batch for batch in original(start))
    for _ in range(6):
        preemption.install()
        with pytest.raises(preemption.Preempted):
            fake.train()
    preemption.install()
    fake.train()
    equal(fake.params(), whole.params())
    # A run that was just started knows of one network's step alone.
    for step, name in ((5, "loss"), (5, "grad_norm"), (6, "discriminator_loss")):
        assert fake.logged(name)[step] == whole.logged(name)[step]


def test_stopped_before_the_first_step(fake, sigterm):
    """Nothing is drawn and nothing saved; the message does not claim it."""
    sigterm()
    with pytest.raises(preemption.Preempted, match="^train_fake: not begun$"):
        fake.train()
    assert not fake.calls and not fake.saved()


def test_stopped_again_before_a_step(fake, sigterm):
    """Nothing is lost of a run that goes on and is stopped at once; it says where it stands."""
    fake.loss_fn = functools.partial(squares, nan_at=4)
    with pytest.raises(NonFinite):
        fake.train()
    sigterm()
    with pytest.raises(preemption.Preempted, match="^train_fake: saved at step 4$"):
        fake.train()
    assert fake.saved() == [2, 4]


def test_stopped_while_it_evaluates(fake, sigterm):
    """An evaluation that does not ask comes to its end, and its results are kept."""
    original = fake.evaluate
    fake.evaluate = lambda state, writer: (sigterm(), original(state, writer))[1]
    with pytest.raises(preemption.Preempted, match="saved at step 3"):
        fake.train()
    assert "score" in checkpoint.read_meta(fake.folder)["results"]


@pytest.mark.parametrize("step", [3, 6], ids=["in between", "last"])
def test_an_evaluation_that_is_cut_off_is_made_at_the_next_start(fake, tmp_path, sigterm, step):
    """The state is saved at once, without results; in the end all is as in a whole run."""
    whole = Fake(tmp_path / "whole" / "fake")
    expected = whole.train()[1]
    original = fake.evaluate

    def cut_off(state, writer):
        if int(state.step) == step:
            sigterm()
        preemption.check("")
        return original(state, writer)

    fake.evaluate = cut_off
    with pytest.raises(preemption.Preempted, match=f"^train_fake: saved at step {step}$"):
        fake.train()
    assert checkpoint.read_meta(fake.folder)["results"].keys() == {"seconds"}
    preemption.install()
    fake.evaluate = original
    results = fake.train()[1]
    assert results["score"] == expected["score"]
    assert fake.logged("score") == whole.logged("score")
    assert checkpoint.read_meta(fake.folder)["results"] == results
    equal(fake.params(), whole.params())


def test_stopped_in_the_last_evaluation(fake, sigterm):
    """There is nothing left to stop: it ends as always, saved."""
    fake.section.evaluate_every = 100
    original = fake.evaluate
    fake.evaluate = lambda state, writer: (sigterm(), original(state, writer))[1]
    assert fake.train()[0] == 6
    assert fake.saved()[-1] == 6


def test_stopped_twice(fake, sigterm):
    """Impatient schedulers send SIGTERM again, here while it saves."""
    original = fake.batches
    fake.batches = lambda start: (sigterm() or sigterm() or b for b in original(start))
    with pytest.raises(preemption.Preempted, match="saved at step 1"):
        fake.train()
    assert fake.saved() == [1]


def test_seconds_of_all_runs_are_added(fake, sigterm, monkeypatch):
    """Here a draw takes ten seconds and all else none: one draw before the stop, five after."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    original = fake.batches

    def slow(start):
        for batch in original(start):
            clock.now += 10
            if start == 0:
                sigterm()
            yield batch

    fake.batches = slow
    with pytest.raises(preemption.Preempted):
        fake.train()
    assert checkpoint.read_meta(fake.folder)["results"]["seconds"] == 10
    preemption.install()
    assert fake.train()[1]["seconds"] == 60


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_init_from_starts_with_other_parameters(fake, tmp_path, ema_decay):
    """At step 0 and with a learning rate of 0: what is saved is what was there (the EMA)."""
    other = Fake(tmp_path / "other" / "fake")
    other.train()
    fake.section.update(dict(ema_decay=ema_decay, steps=1))
    fake.section.optimizer.update(dict(learning_rate=0.0, end_learning_rate=0.0))
    fake.train(other.folder)
    assert fake.calls[0] == "draw 0"
    equal(fake.params(), other.params())


def test_init_from_is_for_the_start_only(fake, tmp_path, sigterm):
    """A run that goes on does so from its own checkpoint; the other may be gone by then."""
    other = Fake(tmp_path / "other" / "fake")
    other.train()
    whole = Fake(tmp_path / "whole" / "fake")
    whole.train(other.folder)
    original = fake.batches
    fake.batches = lambda start: (sigterm() or batch for batch in original(start))
    with pytest.raises(preemption.Preempted):
        fake.train(other.folder)
    preemption.install()
    fake.batches = original
    shutil.rmtree(other.folder)
    fake.train(other.folder)
    equal(fake.params(), whole.params())


def test_init_from_nothing_is_refused(fake, tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}/nowhere: found no complete checkpoint"):
        fake.train(tmp_path / "nowhere")
    assert not fake.calls


def test_a_checkpoint_of_another_model_is_refused(fake, monkeypatch):
    fake.section.steps = 2
    fake.train()
    fake.section.steps = 4
    monkeypatch.setitem(globals(), "init_params", lambda key: {"kernel": jnp.zeros((4, 5))})
    with pytest.raises(InputError, match=f"^{fake.folder}/2/params: "):
        fake.train()


def test_accumulation_changes_no_number(fake, tmp_path):
    """A batch in four pieces, but for rounding; the field may change when a run goes on."""
    whole = Fake(tmp_path / "whole" / "fake")
    whole.train()
    fake.section.accumulate = 4
    fake.train()
    np.testing.assert_allclose(
        list(fake.logged("loss").values()), list(whole.logged("loss").values()), rtol=1e-5
    )
    assert len(fake.logged("loss")) == 6


# --- how far ahead, and how long without a word or a save ----------------------------------------


def test_the_host_is_at_most_two_steps_ahead(fake, monkeypatch):
    """Before it draws for a step it waits until all but two are done; in the end for all."""
    fake.section.update(dict(log_every=100, save_every=100, evaluate_every=100))
    monkeypatch.setattr(
        progress.jax, "block_until_ready", lambda outputs: fake.calls.append("done") or outputs
    )
    fake.train()
    assert ", ".join(fake.calls) == (
        "draw 0, draw 1, draw 2, done, draw 3, done, draw 4, done, draw 5, done, done, done, "
        "evaluate 6"
    )


def test_a_slow_run_is_never_silent(fake, monkeypatch, caplog):
    """While it waits for its fourth batch one step is done and two are not: a line says so."""
    monkeypatch.setattr(progress, "SILENCE", 0.02)
    fake.section.update(dict(log_every=100, save_every=100, evaluate_every=100))
    caplog.set_level(logging.INFO)
    lines = lambda: [line for line in caplog.messages if line.startswith("train_fake step 1/6: ")]
    original = fake.batches

    def slow(start):
        for step, batch in enumerate(original(start)):
            until = time.monotonic() + 60
            while step == 3 and not lines() and time.monotonic() < until:
                time.sleep(0.01)
            yield batch

    fake.batches = slow
    fake.train()
    assert lines()


def test_saved_by_the_clock(fake, monkeypatch):
    """A draw takes ten seconds and half a minute may be lost: so every third step is saved."""
    clock = types.SimpleNamespace(now=1000.0)
    fake_time = types.SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(save_clock, "time", fake_time)
    original = fake.batches

    def slow(start):
        for batch in original(start):
            clock.now += 10
            yield batch

    fake.batches = slow
    fake.section.update(dict(steps=8, save_every=100, save_minutes=0.5))
    fake.train()
    assert fake.saved() == [3, 6, 8]


# --- schedules that are longer than the run ------------------------------------------------------


@pytest.mark.parametrize(
    ("durations", "lines"),
    [
        (
            dict(warmup_steps=60),
            ["warmup: 60 steps, in a run of 6; the learning rate ends at 0.00833, not at 0.1"],
        ),
        (
            dict(warmup_steps=6),
            ["warmup: 6 steps, in a run of 6; the learning rate ends at 0.0833, not at 0.1"],
        ),
        (
            dict(constant_steps=7),
            ["constant: 7 steps, in a run of 6; the learning rate never falls"],
        ),
        (dict(warmup_steps=5, constant_steps=6), []),
    ],
    ids=["warmup", "as long", "constant", "within the run"],
)
def test_a_schedule_longer_than_the_run_is_told(fake, caplog, durations, lines):
    """In one line with both numbers, before there is a program to compile."""
    fake.section.optimizer.update(durations)
    fake.make_program = lambda *durations: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fake.train()
    assert caplog.messages == [f"train_fake.optimizer.{line}" for line in lines]


# --- watching ------------------------------------------------------------------------------------


def test_where_the_time_of_a_step_goes(fake):
    fake.train()
    parts = [fake.logged(f"{part}_seconds") for part in ("input", "checkpoint", "compute")]
    rates = fake.logged("steps_per_second")
    assert rates and all(part.keys() == rates.keys() for part in parts)
    for step, rate in rates.items():
        assert sum(part[step] for part in parts) == pytest.approx(1 / rate, rel=1e-6)
    assert parts[1][5] > 0 == parts[1][2]  # step 4 was saved before step 5 was made


def test_a_report_is_written_at_every_evaluation(fake, monkeypatch):
    written = []
    monkeypatch.setattr(loop, "write_report", written.append)
    fake.train()
    assert written == [fake.folder.parent] * 2


def test_traces_are_of_the_steps_that_are_named(fake, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(list(fake.calls)))
    fake.profile = "2:4"
    fake.train()
    assert calls[0] == str(fake.folder.parent / "profile") and len(calls) == 2
    assert calls[1][-1] == "draw 3"  # steps 2 and 3 were dispatched


def test_a_trace_ends_with_the_loop(fake, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    fake.profile = "2:100"
    fake.train()
    assert calls == ["start", "stop"]


def damage(folder, step):
    """A file of a checkpoint is cut off."""
    path = folder / str(step) / "meta/metadata"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("step", [4, 6], ids=["cut off", "finished"])
def test_a_damaged_checkpoint_is_passed_over_if_that_is_allowed(fake, tmp_path, step):
    """The run goes on from the one before it, to the same end, and keeps the damaged one."""
    whole = Fake(tmp_path / "whole" / "fake")
    expected = whole.train()[1]
    fake.train()
    for later in range(step + 1, 7):
        shutil.rmtree(fake.folder / str(later), ignore_errors=True)
    damage(fake.folder, step)
    fake.calls.clear()
    fake.section.on_damaged_checkpoint = "previous"
    assert fake.train()[1]["score"] == expected["score"]
    assert fake.calls[0] == f"draw {step - 2}"
    equal(fake.params(), whole.params())
    assert fake.logged("loss") == whole.logged("loss")
    assert (fake.folder / f"{step}.damaged").is_dir()


def test_a_damaged_checkpoint_is_refused(fake):
    fake.train()
    shutil.rmtree(fake.folder / "6")
    damage(fake.folder, 4)
    with pytest.raises(InputError, match=f"^{fake.folder}/4: found a damaged checkpoint"):
        fake.train()


def test_a_finished_stage_that_is_sound_does_nothing_either(fake):
    """Where damaged checkpoints are passed over the last one is read, and nothing is made."""
    first = fake.train()
    fake.calls.clear()
    fake.section.on_damaged_checkpoint = "previous"
    assert fake.train() == first
    assert not fake.calls and fake.closed == 1


@pytest.mark.parametrize("failing", [2, 6])
def test_a_save_that_fails_ends_the_run(fake, monkeypatch, failing):
    """It is told at the next step that is logged, or at the end; data is closed as ever."""

    def save(manager, state, config, results, original=checkpoint.save):
        original(manager, state, config, results)
        if int(state.step) == failing:
            manager.wait_until_finished()
            monkeypatch.setattr(manager, "wait_until_finished", full)
            monkeypatch.setattr(manager, "close", full)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(checkpoint.SaveError, match=f"^{fake.folder}: .*No space left"):
        fake.train()
    drawn = [call for call in fake.calls if call.startswith("draw")]
    assert len(drawn) == failing + (failing < 6) and fake.closed == 1


# --- settings without effect ---------------------------------------------------------------------


def _warned(caplog, no_decay=("bias",), traced=range(0), steps=range(2, 5)):
    """What is said of a stage with the parameters `dense/kernel` and `dense/bias`."""
    config = default_config()
    config.train_generator.optimizer.no_decay = no_decay
    params = {"dense": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}}
    state = TrainState(jnp.zeros(()), params, None, ())
    loop.warn_of_no_effect("train_generator", config.train_generator, state, traced, steps)
    return caplog.messages


def test_a_name_of_no_parameter_is_told(caplog):
    said = ["train_generator.optimizer.no_decay: 'kernle' is in the name of no parameter"]
    assert _warned(caplog, no_decay=("bias", "kernle")) == said


def test_names_of_other_models_parameters_are_no_mistake(caplog):
    assert _warned(caplog, no_decay=("bias", "adaln", "basis")) == []


@pytest.mark.parametrize("traced", [range(0, 2), range(5, 9)])
def test_a_trace_outside_the_run_is_told(traced, caplog):
    first = traced[0]
    said = f"profile: step {first} is none of train_generator's, 2 to 4; nothing is traced"
    assert _warned(caplog, traced=traced) == [said]


@pytest.mark.parametrize("traced", [range(0), range(4, 9), range(2, 3)])
def test_a_trace_that_begins_in_the_run_needs_no_word(traced, caplog):
    assert _warned(caplog, traced=traced) == []
