LOSSES = {
    "flow": "model.flow:FlowConfig",
    "ode": "model.regression:OdeConfig",
}
OBJECTIVES = {
    "dmd": "model.dmd:DmdConfig",
    "sid": "model.sid:SidConfig",
    "gan": "model.gan:GanConfig",
}
