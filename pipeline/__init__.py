PIPELINES = {
    "causal": "pipeline.causal:CausalConfig",
    "bidirectional": "pipeline.bidirectional:BidirectionalConfig",
}
