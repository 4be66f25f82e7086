"""The training methods by their names in recipes: a method is one file and one line here."""

METHODS = {
    "poa": "poa_ds.methods.poa:Poa",
    "single": "poa_ds.methods.single:Single",
    "dspnet": "poa_ds.methods.dspnet:Dspnet",
    "seed": "poa_ds.methods.seed:Seed",
    "sweet": "poa_ds.methods.sweet:Sweet",
    "finetune": "poa_ds.methods.finetune:Finetune",
}
