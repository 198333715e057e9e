"""Generated messages and gRPC stubs; the sources are the ``.proto`` files of this folder."""
