"""Training: speech and its text go in, a checkpoint of a small streaming transducer comes out.

The stages, one file each:

- ``strict``, ``config``: a TOML file -> frozen dataclasses, checked
- ``pseudo``, ``transcriber``: speech without text -> a manifest with Whisper's (``onebest pseudo-label``)
- ``features``: lhotse cuts -> a store of log-mel features on disk, or of what ``pretrained`` encoders make of
  them for a teacher (``onebest prepare``)
- ``vocabulary``: text -> a 500-piece BPE model
- ``whisper``: a Whisper encoder of CTranslate2 or transformers -> first weights of ours
  (``onebest convert-encoder``)
- ``encoder``, ``transducer``: the model
- ``planes``, ``lattice``, ``band``: joiner outputs -> the transducer loss, whole or on a band around a path
- ``losses``: what a stage minimises
- ``utterances``, ``batches``, ``augment``: the store -> batches in a fixed order, augmented
- ``start``, ``trainer``, ``parallel``, ``checkpoint``, ``runlog``: batches -> a trained checkpoint and its
  log, resumable at any step, in one process or several (``onebest train``, ``onebest average``)
- ``figures``, ``figure_data``: checkpoints and logs -> pictures (``onebest figure``)
- ``language_model``: text -> a language model of the same tokens (``onebest train-lm``)
- ``fusion``: a transducer and such a model -> a transducer that greedy search follows better
- ``teacher``, ``beam``, ``produce``, ``targets``: a teacher and speech -> its best paths, in a store
  (``onebest targets``)
- ``decode``: a checkpoint -> text, for the error rate on dev while training
"""
