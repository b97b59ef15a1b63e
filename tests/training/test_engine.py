"""The engine, and with it `train_clean`: exact to the bit, resumable, and a sample left out moves no other one."""

import itertools
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from meca.errors import MecaError, UsageError
from meca.models import NETWORKS, Architecture, build
from meca.training.device import Device, EngineParams, prepare
from meca.training.engine import Data, Session, features, predict, side_by_side
from meca.training.recording import worth_compiling
from meca.training.seeds import generator
from meca.training.trainer import SCHEDULES, Recipe, Trainer, as_input, schedule_of
from tests.making import settings
from tests.method.tiny import CLASSES, CPU, copied, description, network, recipe, same, samples, train, unchanged
from tests.models.test_models import FITTING

ALL = torch.ones(64, dtype=torch.bool)
BFLOAT = Device("cpu", 1, torch.bfloat16)


def trained(keep: Tensor = ALL, seed: int = 0, model: nn.Module | None = None, purpose: str = "test", **changes: Any) -> nn.Module:
    images, labels = samples(len(keep))
    model = build(description(), generator(seed, "init")) if model is None else model
    return train(model, images, labels, keep, recipe(**changes), purpose, seed=seed)


def test_thirty_two_images_are_fitted() -> None:
    images, labels = samples(32)
    model = train(network(), images, labels, ALL[:32], recipe(epochs=30), "fit")
    assert (predict(model, images).argmax(1) == labels).all() and not model.training


@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
def test_two_runs_of_one_seed_have_the_same_bits_and_another_seed_has_others(augment: str) -> None:
    torch.manual_seed(1)
    first = trained(augment=augment)
    torch.manual_seed(2)
    assert same(first, trained(augment=augment))
    assert not same(first, trained(augment=augment, seed=1)) and not same(first, trained(augment=augment, purpose="other"))


@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_training_depends_on_no_global_state(name: str, stem: str) -> None:
    (images, labels), about = samples(8, size=32), description(Architecture(name, stem, 4), 32)  # pyright: ignore[reportArgumentType]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build(about, generator("init"))
        results.append(train(model, images, labels, ALL[:8], recipe(epochs=1, augment="shift_flip"), "test"))
    assert same(*results)
    assert set(NETWORKS) == {each for each, _ in FITTING}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("augment", ["none", "shift_flip"])
@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_killed_run_continues_to_the_same_bits_momentum_included(last: int, augment: str, tmp_path: Path) -> None:
    images, labels = samples(40)
    keep = torch.arange(40) % 5 != 0

    def run(place: Path, stop: int = 0) -> tuple[nn.Module, list[tuple[int, float, float]]]:
        said: list[tuple[int, float, float]] = []

        def note(*values: Any) -> None:
            said.append(values)
            if values[0] == stop:
                raise Killed

        model = build(description(), generator("init"))
        try:
            train(model, images, labels, keep, recipe(epochs=4, augment=augment), "resume", checkpoints=place, note=note)
        except Killed:
            pass
        return model, said

    whole, said = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=last)
    torch.manual_seed(last)
    parts, said_again = run(tmp_path / "parts")
    assert same(whole, parts)
    assert (tmp_path / "whole" / "resume.safetensors").read_bytes() == (tmp_path / "parts" / "resume.safetensors").read_bytes()
    assert any(name.startswith("momentum.") and bool(tensor.any()) for name, tensor in load_file(tmp_path / "whole" / "resume.safetensors").items())
    assert said_again == said, "a resumed run tells the whole story, with the epochs that it did not run again"


def test_a_checkpoint_in_which_a_bit_changed_is_not_used(tmp_path: Path) -> None:
    images, labels = samples(16)
    file = tmp_path / "x.safetensors"
    whole = train(network(), images, labels, ALL[:16], recipe(epochs=2), checkpoints=tmp_path)
    written = file.read_bytes()
    for at in range(3, len(written), len(written) // 40):
        file.write_bytes(written[:at] + bytes([written[at] ^ 4]) + written[at + 1 :])
        train(network(), images, labels, ALL[:16], recipe(epochs=2), checkpoints=tmp_path)
        assert file.read_bytes() == written, f"byte {at}"
    file.write_bytes(b"")
    assert same(train(network(), images, labels, ALL[:16], recipe(epochs=2), checkpoints=tmp_path), whole)


def test_a_checkpoint_of_another_user_or_of_another_training_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ships one decides what the model is, if it is taken up."""
    images, labels = samples(16)
    (tmp_path / "a").mkdir()
    poisoned = train(network(seed=5), images, labels.flip(0), ALL[:16], recipe(epochs=2), checkpoints=tmp_path / "a")
    own, other = (train(network(), images, labels, ALL[:16], recipe(epochs=2), purpose) for purpose in ("x", "y"))
    assert not same(poisoned, own)
    for folder, purpose, alone in (("b", "x", own), ("a", "y", other)):  # of another run, of another training in the same run
        (tmp_path / folder).mkdir(exist_ok=True)
        for end in ("", ".seal"):
            shutil.copy(tmp_path / f"a/x.safetensors{end}", tmp_path / f"{folder}/{purpose}.safetensors{end}")
        assert same(train(network(), images, labels, ALL[:16], recipe(epochs=2), purpose, checkpoints=tmp_path / folder), alone)
    monkeypatch.setenv("MECA_STATE_DIR", str(tmp_path / "another"))
    assert same(train(network(), images, labels, ALL[:16], recipe(epochs=2), checkpoints=tmp_path / "a"), own)


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    images, labels = samples(16)
    first = train(network(), images, labels, ALL[:16], recipe(), checkpoints=tmp_path)
    again = train(network(seed=5), images, labels, ALL[:16], recipe(), checkpoints=tmp_path)
    assert same(first, again)


class Seen(nn.Module):
    """A network that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8 * 8 * 3, CLASSES)
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images += [image.clone() for image in x]
        return self.last(x.flatten(1))


def shown(images: Tensor, keep: Tensor, augment: str) -> list[Tensor]:
    model = Seen()
    train(model, images, torch.zeros(len(images), dtype=torch.long), keep, recipe(batch_size=1, augment=augment), "order")
    return model.images


@pytest.mark.parametrize("augment", ["shift", "shift_flip"])
def test_leaving_samples_out_moves_no_other_sample_and_no_pixel(augment: str) -> None:
    images, _ = samples(32)
    numbered = torch.arange(32, dtype=torch.uint8)[:, None, None, None].expand(32, 8, 8, 3).contiguous()
    everything = torch.ones(32, dtype=torch.bool)
    order = [round(float(image.max()) * 255) for image in shown(numbered, everything, "none")]
    assert sorted(order[:32]) == sorted(order[32:]) == list(range(32)) and order[:32] != order[32:]
    keep = torch.rand(32, generator=generator("keep")) < 0.6
    expected = [image for i, image in zip(order, shown(images, everything, augment), strict=True) if keep[i]]
    found = shown(images, keep, augment)
    assert len(found) == len(expected) == 2 * int(keep.sum())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_pixels_and_labels_of_what_is_left_out_are_never_used() -> None:
    images, labels = samples(64)
    keep = torch.rand(64, generator=generator("keep")) < 0.6
    results = []
    for noise in (0, 1):
        other = torch.where(keep[:, None, None, None], images, 255 * noise)
        results.append(train(network(), other, torch.where(keep, labels, noise), keep, recipe(augment="shift_flip")))
    assert same(*results)


def test_training_leaves_its_inputs_as_they_were() -> None:
    images, labels = samples(64)
    before = images.clone(), labels.clone()
    train(network(), images, labels, ALL, recipe(augment="shift_flip"))
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])


def test_a_step_is_that_of_nesterov_by_hand() -> None:
    images, labels = samples(16)
    x, settings = as_input(images), recipe(weight_decay=0.01, lr=0.1, label_smoothing=0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    trainer = Trainer(model, settings, steps=5)
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    v = [torch.zeros_like(w), torch.zeros_like(b)]
    for k in range(5):
        logits = x.flatten(1) @ w.T + b
        target = F.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
        gradients = torch.autograd.grad(-(target * logits.log_softmax(1)).sum(1).mean(), (w, b))
        t = k / 5
        lr = 0.1 * (max(t / 0.2, 0.05) if t < 0.2 else max((1 - t) / 0.8, 0.01))
        with torch.no_grad():
            for i, (p, gradient, decay) in enumerate(zip((w, b), gradients, (0.01, 0.0), strict=True)):
                gradient = gradient + decay * p
                v[i] = 0.9 * v[i] + gradient
                p -= lr * (gradient + 0.9 * v[i])
        trainer.step(x, labels)
    assert torch.allclose(model[1].weight, w, atol=1e-6) and torch.allclose(model[1].bias, b, atol=1e-6)


def test_the_rate_rises_over_a_fifth_falls_over_the_rest_and_is_never_zero() -> None:
    trainer = Trainer(network(), recipe(lr=0.2), steps=100)
    rates = []
    for trainer.done in range(100):
        rates.append(trainer.lr())
    assert max(rates) == rates[20] == pytest.approx(0.2) and min(rates) > 0
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_a_sample_of_weight_zero_changes_nothing() -> None:
    images, labels = samples(16)
    weight = (torch.arange(16) % 3 > 0).float()
    results = []
    for noise in (0, 255):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))  # without BatchNorm, whose statistics see every row
        other = torch.where(weight.bool()[:, None, None, None], images, noise)
        Trainer(model, recipe(), 1).step(as_input(other), torch.where(weight.bool(), labels, noise % CLASSES), weight)
        results.append(model)
    assert same(*results)


def test_weights_of_one_are_no_weights_and_negative_ones_unlearn() -> None:
    images, labels = samples(16)
    x = as_input(images)
    plain, weighted, ascending = network(), network(), network()
    loss, _ = Trainer(plain, recipe(), 1).step(x, labels)
    Trainer(weighted, recipe(), 1).step(x, labels, torch.ones(16))
    negative, _ = Trainer(ascending, recipe(weight_decay=0.0), 1).step(x, labels, -torch.ones(16))
    assert torch.allclose(predict(plain, images), predict(weighted, images), atol=1e-5)
    assert float(negative) == pytest.approx(-float(loss))
    with torch.no_grad():
        after = {model: float(F.cross_entropy(model.train()(x), labels)) for model in (plain, ascending)}
    assert after[plain] < float(loss) < after[ascending]


def test_the_default_objective_is_the_smoothed_cross_entropy_and_another_one_takes_its_place() -> None:
    (images, labels), how = samples(40), recipe(epochs=2, label_smoothing=0.1, augment="shift_flip")

    def each(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1), logits

    def mean(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = each(model, x, y)
        return loss.mean(), logits

    def reversed_labels(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return each(model, x, CLASSES - 1 - y)

    weight = (torch.arange(40) % 3).float() - 0.5
    for device in (CPU, BFLOAT):
        session = Session(0, device)
        plain = session.train(network(), Data(images, labels), how, "x")
        assert same(plain, session.train(network(), Data(images, labels), how, "x", objective=each))
        assert same(plain, session.train(network(), Data(images, labels), how, "x", objective=mean))
        weighted = session.train(network(), Data(images, labels, weight), how, "x")
        assert same(weighted, session.train(network(), Data(images, labels, weight), how, "x", objective=each)) and not same(weighted, plain)
    learnt = Session(0, CPU).train(network(), Data(images, labels), recipe(epochs=30), "x", objective=reversed_labels)
    assert (predict(learnt, images).argmax(1) == CLASSES - 1 - labels).float().mean() > 0.9
    with pytest.raises(MecaError, match=r"a loss for each of 8 samples, which have weights, got shape \[\]"):
        Session(0, CPU).train(network(), Data(images, labels, weight), how, "x", objective=mean)


def test_one_schedule_rises_and_falls_and_the_others_are_constant_a_cosine_and_steps() -> None:
    steps = 40
    by_hand = [max(t / 0.2, 0.05) if t < 0.2 else max((1 - t) / 0.8, 0.01) for t in (i / steps for i in range(steps))]
    rates = {name: [schedule(i / steps) for i in range(steps)] for name, schedule in SCHEDULES.items()}
    assert rates["one_cycle"] == by_hand and rates["constant"] == [1.0] * steps
    assert rates["cosine"][0] == 1.0 and rates["cosine"][20] == pytest.approx(0.5) and rates["cosine"][30] == pytest.approx(0.5 - 0.125**0.5)
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["step"] == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)
    assert all(0 < rate <= 1 for each in rates.values() for rate in each)


def test_a_session_trains_by_its_schedule_and_a_wrong_name_is_answered_with_the_near_one() -> None:
    images, labels = samples(40)
    found = [train(network(), images, labels, ALL[:40], recipe(), schedule=name) for name in SCHEDULES]
    assert same(found[0], train(network(), images, labels, ALL[:40], recipe()))
    assert not any(same(a, b) for a, b in itertools.combinations(found, 2))
    taken = Trainer(network(), recipe(lr=0.5), 4, schedule=schedule_of("step"))
    assert [taken.lr() for taken.done in range(4)] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    with pytest.raises(MecaError, match=r"one of one_cycle, constant, cosine, step, got 'cosin'; did you mean 'cosine'\?"):
        train(network(), images, labels, ALL[:40], recipe(), schedule="cosin")


def test_trainings_of_one_purpose_keep_their_checkpoints_apart_by_the_name_of_the_session(tmp_path: Path) -> None:
    images, labels = samples(40)
    half = torch.arange(40) % 2 == 0
    whole = train(network(), images, labels, ALL[:40], recipe(), "one purpose", checkpoints=tmp_path, name="a-")
    assert not same(whole, train(network(), images, labels, half, recipe(), "one purpose", checkpoints=tmp_path, name="b-"))
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {"a-one-purpose.safetensors", "b-one-purpose.safetensors"}


@pytest.mark.parametrize(("epochs", "min_steps", "batch_size", "kept"), list(itertools.product([1, 3], [0, 100], [8, 64], [2, 7, 8, 100])))
def test_passes_reach_both_floors_and_no_more(epochs: int, min_steps: int, batch_size: int, kept: int) -> None:
    settings = recipe(epochs=epochs, min_steps=min_steps, batch_size=batch_size)
    steps = 0

    def note(*_: Any) -> None:
        nonlocal steps
        steps += max(1, kept // min(batch_size, kept))

    images, labels = samples(kept)
    train(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), images, labels, torch.ones(kept, dtype=torch.bool), settings, note=note)
    passes = settings.passes(kept)
    assert steps >= min_steps and passes >= epochs
    assert passes == epochs or steps - steps // passes < min_steps


@pytest.mark.parametrize("kept", [0, 1])
def test_nothing_to_train_on_is_said(kept: int) -> None:
    with pytest.raises(MecaError, match=f"Expected at least two samples to train on, got {kept}"):
        trained(torch.arange(64) < kept)


def test_a_loss_that_is_no_number_names_the_training() -> None:
    with pytest.raises(MecaError, match=r"training 'test' is not finite in epoch 1; lower its learning rate in params\.yaml"):
        trained(lr=1e38)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_do_not_depend_on_the_batch_size_nor_on_the_mode(batch_size: int) -> None:
    model, (images, _) = network().train(), samples(20)
    before = copied(model)
    found = predict(model, images, batch_size)
    assert model.training and unchanged(model, before)
    assert torch.allclose(found, model.eval()(as_input(images)), atol=1e-5) and found.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_are_what_the_last_layer_is_given(batch_size: int) -> None:
    model, (images, _) = network().train(), samples(20)
    before, hooks = copied(model), sum(len(module._forward_pre_hooks) for module in model.modules())
    found = features(model, images, batch_size)
    assert model.training and unchanged(model, before) and sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert found.shape == (20, last.in_features)
    assert torch.allclose(last(found), predict(model, images), atol=1e-5)
    assert features(model, images[:0]).shape == (0, last.in_features)


def test_pixels_become_numbers_in_the_unit_interval_in_the_order_of_the_channels() -> None:
    images, _ = samples(4)
    x = as_input(images)
    assert x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert float(x[2, 1, 3, 5]) == pytest.approx(int(images[2, 3, 5, 1]) / 255)


def test_bfloat16_learns_the_same_task_keeps_float32_weights_and_gives_the_same_bits_twice() -> None:
    images, labels = samples(32)
    found = [train(network(), images, labels, ALL[:32], recipe(epochs=30), "fit", device=device) for device in (BFLOAT, BFLOAT, CPU)]
    assert (predict(found[0], images).argmax(1) == labels).all()
    assert all(p.dtype == torch.float32 for p in found[0].parameters())
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_a_killed_bfloat16_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    images, labels = samples(40)

    def run(place: Path, stop: int) -> nn.Module:
        def note(epoch: int, *_: Any) -> None:
            if epoch == stop:
                raise Killed

        model = build(description(), generator("init"))
        try:
            train(model, images, labels, ALL[:40], recipe(epochs=3, augment="shift_flip"), checkpoints=place, note=note, device=BFLOAT)
        except Killed:
            pass
        return model

    run(tmp_path / "parts", 1)
    assert same(run(tmp_path / "parts", 0), run(tmp_path / "whole", 0))


def test_on_a_cpu_both_modes_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_THREADS", "1")
    for mode in ("fast", "exact"):
        assert prepare(EngineParams(mode, "auto", 1024.0, 0.5)) == Device("cpu", 1, torch.float32, "eager", 2**30)  # pyright: ignore[reportArgumentType]
        assert torch.are_deterministic_algorithms_enabled()
    assert prepare() == Device("cpu", 1, torch.float32, "eager")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark


def test_trainings_side_by_side_have_the_bits_of_trainings_alone() -> None:
    images, labels = samples(40)

    def job(seed: int) -> nn.Module:
        return train(network(), images, labels, ALL[:40], recipe(epochs=4, augment="shift_flip"), seed=seed)

    alone = [job(seed) for seed in range(3)]
    together = side_by_side([lambda seed=seed: job(seed) for seed in range(3)], Device("cpu", 3))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True)) and not same(together[0], together[1])


def test_trainings_side_by_side_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=20)
    assert side_by_side([barrier.wait, barrier.wait], Device("cpu", 2)) in ([0, 1], [1, 0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_that_fails_ends_the_others_and_is_raised(threads: int) -> None:
    images, labels = samples(40)
    epochs: list[int] = []

    def fails() -> nn.Module:
        return train(network(), images, labels, ALL[:40], recipe(lr=1e38), "wild")

    def long() -> nn.Module:
        return train(network(), images, labels, ALL[:40], recipe(epochs=100_000), "long", note=lambda epoch, *_: epochs.append(epoch))

    with pytest.raises(MecaError, match="training 'wild' is not finite"):
        side_by_side([fails, long], Device("cpu", threads))
    assert len(epochs) < 100_000
    assert same(trained(), trained()), "the next training is not interrupted"


def test_compiling_pays_where_many_slow_steps_are_planned() -> None:
    assert worth_compiling(100_000, 0.01, 45.0)
    assert not worth_compiling(3_000, 0.0065, 45.0), "a whole lean run on CIFAR-10"
    assert not worth_compiling(100_000, 0.01, 1e6)


def test_a_checkpoint_that_is_dear_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    written: list[int] = []

    def write(trainer: Trainer, checkpoint: Path | None, epoch: int) -> None:
        written.append(epoch)
        clock[0] += 1.0

    def note(*_: Any) -> None:
        clock[0] += 2.0  # an epoch

    monkeypatch.setattr("meca.training.engine.save_checkpoint", write)
    monkeypatch.setattr("meca.training.engine.time.perf_counter", lambda: clock[0])
    images, labels = samples(16)
    train(network(), images, labels, ALL[:16], recipe(epochs=12), checkpoints=tmp_path, note=note)
    assert written == [1, 6, 11, 12]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", ["none", "shift_flip"])
def test_a_recorded_step_has_the_bits_of_an_eager_one(augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_DEVICE", "cuda")
    device = prepare(EngineParams("exact", "auto", 1024.0, 0.5))
    images, labels = (tensor.cuda() for tensor in samples(40))
    found = []
    for step in ("eager", "graph"):
        model = network().cuda()
        train(model, images, labels, ALL[:40].cuda(), recipe(epochs=3, augment=augment), device=Device(device.name, 1, torch.float32, step))
        found.append(model)
    assert same(*found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("min_steps", -1), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("momentum", 1.0), ("weight_decay", -1e-4),
        ("label_smoothing", 1.0), ("padding", -1),
    ],
)  # fmt: skip
def test_a_number_with_which_nothing_can_be_trained_is_refused_by_name(field: str, value: float) -> None:
    params = settings(**{f"train_clean.{field}": value})
    with pytest.raises(UsageError, match=rf"(\[train_clean\] expected |expected train_clean\.){field} "):
        params.group("train_clean", Recipe)


def test_no_images_have_no_logits() -> None:
    assert predict(network(), samples(4)[0][:0]).shape == (0, CLASSES)
