"""Export: a training checkpoint goes in, a model bundle that onebest and sherpa-onnx run comes out.

The stages, one file each:

- ``streaming``: the encoder over one chunk or several, laid out to run fast
- ``graphs``: the torch model as three ONNX graphs in sherpa-onnx's ``conformer`` contract
- ``quantize``: float32 graphs -> int8 ones, a scale for each output and each frame
- ``optimize``: int8 graphs as onnxruntime runs them, saved
- ``verify``: ONNX against torch over many chunks with state; a graph that differs is not shipped
- ``deviation`` and ``precision``: what int8 changes on speech, and what stays in float32 for it
- ``bundle``: all files of a bundle with their card
- ``latency``: a bundle -> a copy whose metadata name another latency
"""
