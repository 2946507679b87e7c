PIPELINES = {
    "causal": "pipeline.config:CausalConfig",
    "bidirectional": "pipeline.config:BidirectionalConfig",
    "audio_driven": "pipeline.config:AudioDrivenConfig",
}
SAMPLERS = {
    "few_step": "pipeline.config:FewStepConfig",
    "multi_step": "pipeline.config:MultiStepConfig",
}
