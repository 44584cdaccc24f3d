"""Parts of training that both modules share: base module, run folder, out-of-memory recovery, monitors."""
