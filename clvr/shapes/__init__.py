"""The built-in world: coloured shapes on a plain ground, with a language, a renderer and a measuring verifier."""
