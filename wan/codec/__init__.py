DECODERS = {
    "vae": "wan.codec.config:VAEDecoderConfig",
}
