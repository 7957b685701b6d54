"""Synthetic people, drawn (puppets) and rendered (`human`), with truth for everything.

Why it exists: training, evaluation and the demo need unlimited talking-and-listening video with exact truth (mouth
opening, gaze, nods, landmarks) and without licences, downloads or private faces. Run time never imports this package.
It needs the extra `synth` (OpenCV) and, for speech, the program `flite`; espeak-ng and the extra `voices` add speakers.

From sound to picture: `scripts` and `topics` (sentences) -> `voices`, `speech`, `phones` (samples and phones) ->
`dialogue`, `acoustics` (two lanes; `recordings` makes lanes of real speech) -> `performance` (motion truth) -> `puppet`
or `human` (pixels and landmarks) -> `clips`, `source` (training examples). `measure` reads mouth and eyes back from
pixels; `bundle` makes the demo inputs that ship.
"""
