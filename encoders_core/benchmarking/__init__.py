"""What EncoderBenchmark is made of: data sets, the metrics and their sources, results."""
