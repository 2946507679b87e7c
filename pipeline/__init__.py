PIPELINES = {
    "causal": "pipeline.config:CausalConfig",
    "bidirectional": "pipeline.config:BidirectionalConfig",
}
SAMPLERS = {
    "few_step": "pipeline.config:FewStepConfig",
    "multi_step": "pipeline.config:MultiStepConfig",
}
