LOSSES = {
    "flow": "model.config:FlowConfig",
    "ode": "model.config:OdeConfig",
    "dmd": "model.config:DmdConfig",
    "sid": "model.config:SidConfig",
    "gan": "model.config:GanConfig",
    "tdm": "model.config:TdmConfig",
}
