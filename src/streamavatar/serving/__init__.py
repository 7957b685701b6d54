"""The live server: a gateway that owns clocks and lanes, an engine process that makes chunks, and a web page."""
