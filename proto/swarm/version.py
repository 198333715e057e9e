"""The version of this program: the one place where it is written. Reading it from the installed package's metadata would load
an e-mail parser and a zip reader into every daemon, 3 MB each."""

VERSION = "0.1.0"
