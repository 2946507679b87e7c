TRAINERS = {
    "regress": "trainer.regress:RegressConfig",
    "codec": "trainer.codec:CodecConfig",
    "distill": "trainer.distill:DistillConfig",
}
SOURCES = {
    "latents": "trainer.sources.latents:LatentsConfig",
    "rollout": "trainer.sources.rollout:RolloutConfig",
    "stream": "trainer.sources.stream:StreamConfig",
    "noised_data": "trainer.sources.recorded:NoisedDataConfig",
    "ode_pairs": "trainer.sources.recorded:OdePairsConfig",
}
