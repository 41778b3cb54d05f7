"""Curriculum: supervised fine-tuning, in every epoch the rows that the model finds easiest come first."""

import math

import numpy as np
from finetooth_hooks import (
    Context,
    Conversation,
    DataError,
    Limit,
    Method,
    MethodBase,
    Prepared,
    Rendering,
    StepReport,
    hookimpl,
)


@hookimpl
def ft_methods():
    yield Method(name="easy_first", build=f"{__name__}:EasyFirst", summary="fine-tuning, easy rows first")


def rendering(options, context: Context):
    def render(example):
        if not isinstance(example, Conversation):
            raise DataError("", f"the row is {example.called}", action="give easy_first conversations")
        return context.renderer.render(example)

    return render


class EasyFirst(MethodBase):
    def __init__(self, context):
        self.context, self.loss = context, context.loss("cross_entropy")
        self.done, self.order = 0, []

    def prepare(self):
        train = self.context.train
        prepared = self.context.prepare("train", Rendering(f"{__name__}:rendering"), Limit.of(train))
        self.data, self.size = prepared.data, train.batch_size
        self.per_epoch = math.ceil(len(self.data) / self.size)
        self.total = train.max_steps or math.ceil(train.epochs * self.per_epoch)
        return Prepared(self.total, self.per_epoch, prepared.report)

    def steps(self, engine):
        while self.done < self.total:
            begin = self.done % self.per_epoch * self.size
            if begin == 0:  # an epoch begins: score every row with the weights as they are now
                rows = list(self.data)
                losses = [
                    -scores.sum() / row.mask.sum() for scores, row in zip(engine.logprobs(rows), rows, strict=True)
                ]
                self.order = np.argsort(losses, kind="stable").tolist()
            batch = [self.data[row] for row in self.order[begin : begin + self.size]]
            self.done += 1  # before the engine is called: after a failed step the run continues with the next batch
            result = engine.forward_backward(batch, self.loss)
            stepped = engine.step(metrics={"loss": result.loss})
            yield StepReport(
                step=stepped.step,
                epoch=self.done / self.per_epoch,
                loss=result.loss,
                tokens=result.tokens,
                targets=result.targets,
                rows=len(batch),
                learning_rate=stepped.learning_rate,
                grad_norm=stepped.grad_norm,
                skipped=stepped.skipped,
            )

    def state(self):
        return {"done": self.done, "order": self.order}

    def restore(self, state):
        self.done, self.order = state["done"], state["order"]
