"""The command `init`: a config of `fit` that suits a prepared corpus."""
