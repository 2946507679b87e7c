PIPELINES = {
    "causal": "pipeline.options:CausalConfig",
    "bidirectional": "pipeline.options:BidirectionalConfig",
}
