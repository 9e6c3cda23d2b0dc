"""The tables of choices that ship with the library, measured on the GPU that is here."""
