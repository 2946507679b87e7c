PIPELINES = {
    "causal": "pipeline.config:CausalConfig",
    "bidirectional": "pipeline.config:BidirectionalConfig",
    "audio_driven": "pipeline.config:AudioDrivenConfig",
}
EXECUTORS = {
    "plain": "pipeline.config:PlainConfig",
    "tpp": "pipeline.config:TPPConfig",
}
SAMPLERS = {
    "few_step": "pipeline.config:FewStepConfig",
    "multi_step": "pipeline.config:MultiStepConfig",
}
