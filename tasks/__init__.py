"""SeqIO tasks and mixtures, one file a corpus."""
