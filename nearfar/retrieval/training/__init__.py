"""Fine-tuning on sentence-transformers' own trainer."""
