LOSSES = {
    "flow": "model.flow:FlowConfig",
}
