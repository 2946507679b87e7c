BACKENDS = {
    "flash3": "wan.attention.dense:Flash3",
    "flash2": "wan.attention.dense:Flash2",
    "flash4": "wan.attention.flex:Flash4",
    "flex": "wan.attention.flex:Flex",
    "gather": "wan.attention.gather:Gather",
    "sdpa": "wan.attention.dense:Sdpa",
}
