TRAINERS = {
    "regress": "trainer.regress:RegressConfig",
    "codec": "trainer.codec:CodecConfig",
}
SOURCES = {
    "latents": "trainer.source:LatentsConfig",
}
