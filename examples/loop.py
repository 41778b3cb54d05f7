"""A whole training loop. finetooth reads the rows, loads the model and computes; the loop is yours.

    python examples/loop.py                          trains examples/sft.yaml into runs/loop-sft
    python examples/loop.py my.yaml train.epochs=2   another recipe, into runs/loop-my

Stop it with Ctrl-C and start it again: it continues where the last saved state was, with the same numbers.
"""

import math
import sys
from pathlib import Path

import finetooth
import numpy as np
from finetooth_hooks import FinetoothError, Message, Sampling

SAVE_EVERY = 4  # optimizer steps
HELD_OUT = 1  # the last rows, which do not train


def main(recipe: str = "examples/sft.yaml", *overrides: str) -> None:
    # The recipe is read and every open choice is decided. No weights are loaded yet.
    session = finetooth.session(recipe, f"output=runs/loop-{Path(recipe).stem}", *overrides)
    for decision in session.plan.decisions:
        print(f"{decision.setting} = {decision.value}  ({decision.reason})")

    # Rows became tokens: a `Datum` holds the tokens of one row, its targets, and what each target weighs.
    method, train, folder = session.job.method, session.recipe.train, session.folder
    data = list(method.data)
    data, held_out = data[:-HELD_OUT], data[-HELD_OUT:]
    loss = session.context.loss("cross_entropy")  # or one of your own: see my_loss.py

    # The weights are loaded: an engine trains one set of parameters on a frozen base.
    engine = session.engine
    print(f"{engine.info.trained:,} of {engine.info.parameters:,} parameters train on {engine.info.device}")
    state = folder / "state"
    if state.is_dir():
        engine.load(state)  # weights, optimizer, schedule, random state

    per_epoch = -(-len(data) // train.batch_size)
    total = train.max_steps or math.ceil(train.epochs * per_epoch)
    engine.set_total_steps(total)  # for the schedule of the learning rate
    print(f"held-out loss {mean_loss(engine, held_out):.4f}")
    for step in range(engine.weights_version, total):
        # The order of an epoch follows from its number, so a resumed loop sees the same batches.
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng(epoch).permutation(len(data))
        batch = [data[row] for row in order[position * train.batch_size :][: train.batch_size]]

        # One optimizer step. The engine cuts the batch into micro-batches that fit into memory, and divides by the
        # weights of the whole batch, so the cut does not change the result. Several calls before one `step` accumulate.
        result = engine.forward_backward(batch, loss)
        stepped = engine.step()
        print(
            f"step {stepped.step}/{total}  loss {result.loss:.4f}  gradient norm {stepped.grad_norm:.3f}  "
            f"learning rate {stepped.learning_rate:.2e}  {result.targets} targets"
        )
        if stepped.step % SAVE_EVERY == 0:
            engine.save(state)
    print(f"held-out loss {mean_loss(engine, held_out):.4f}")

    # Ask it something, with the markup that its family was trained with.
    renderer = session.context.renderer
    prompt = renderer.prompt([Message("user", "Do you ship to Austria?")])
    ((answer,),) = engine.generate([prompt], Sampling(max_tokens=24, temperature=0))
    print(answer.text)

    # What other tools load: here a LoRA as peft writes it.
    engine.export(folder / "adapter")
    print(f"the adapter is in {folder / 'adapter'}")


def mean_loss(engine, data) -> float:
    """Negative log-likelihood per target, in nats."""
    scores = engine.logprobs(data)
    return -sum(each.sum() for each in scores) / sum(row.mask.sum() for row in data)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except FinetoothError as error:  # bad input, one line
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: start it again to continue from the last saved state", file=sys.stderr)
        sys.exit(130)
