TRAINERS = {
    "regress": "trainer.config:RegressConfig",
    "codec": "trainer.config:CodecConfig",
    "distill": "trainer.config:DistillConfig",
}
SOURCES = {
    "latents": "trainer.sources.config:LatentsConfig",
    "talking": "trainer.sources.config:TalkingConfig",
    "rollout": "trainer.sources.config:RolloutConfig",
    "talking_rollout": "trainer.sources.config:TalkingRolloutConfig",
    "trajectory": "trainer.sources.config:TrajectoryConfig",
    "stream": "trainer.sources.config:StreamConfig",
    "noised_data": "trainer.sources.config:NoisedDataConfig",
    "ode_pairs": "trainer.sources.config:OdePairsConfig",
}
TEXTS = {
    "encoder": "wan.config:TextConfig",
    "encoded": "trainer.sources.config:EncodedTextConfig",
}
