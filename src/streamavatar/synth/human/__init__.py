"""Rendered people: a random identity built from MakeHuman assets plays a `Performance`.

From files to pixels: `assets` (reads the folder) -> `identity` (draws a person from a seed) -> `build` (a `Figure`:
meshes, morphs, skin weights, textures) -> `motion` (a performance becomes morph weights and bone matrices) ->
`render` (pixels) and `truth` (landmarks). Needs the extra `human` (moderngl) and an asset folder; see
docs/synthetic-people.md for where to get one.
"""
