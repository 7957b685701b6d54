"""Synthetic people: a procedural puppet world with truth for everything.

Why it exists: training, evaluation and the demo need unlimited talking-and-listening video with exact
truth (mouth opening, gaze, nods, landmarks) and without licences, downloads or private faces. Run time
never imports this package. It needs the extra `synth` (OpenCV) and, for speech, the program `flite`.

From sound to picture: `scripts` (sentences) -> `speech` (samples and phones) -> `dialogue` (two lanes) ->
`performance` (motion truth) -> `puppet` (pixels and landmarks) -> `clips` (training examples).
`measure` reads mouth and eyes back from pixels; `bundle` makes the demo inputs that ship.
"""
