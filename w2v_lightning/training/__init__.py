"""Parts of training that both modules share: options, base module, run folder, out-of-memory recovery, monitors."""
