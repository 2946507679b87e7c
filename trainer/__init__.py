TRAINERS = {
    "regress": "trainer.regress:RegressConfig",
    "codec": "trainer.codec:CodecConfig",
    "distill": "trainer.distill:DistillConfig",
}
SOURCES = {
    "latents": "trainer.source:LatentsConfig",
    "rollout": "trainer.rollout_source:RolloutConfig",
    "stream": "trainer.stream_source:StreamConfig",
    "noised_data": "trainer.data_source:NoisedDataConfig",
    "ode_pairs": "trainer.data_source:OdePairsConfig",
}
