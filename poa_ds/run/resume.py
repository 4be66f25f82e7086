"""Where a run goes on: the newest whole checkpoint of its folder, and what is said about it."""

from poa_ds.checkpoint.folders import read_manifest
from poa_ds.checkpoint.state import RunState, find_together, load
from poa_ds.data.store.loose import LooseFolder
from poa_ds.recipe import continuing
from poa_ds.run.setup import Setup
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder


def resume(setup: Setup, folder: RunFolder) -> RunState | None:
    """The state of the checkpoint that engine and stepper go on from; None where there is none.

    A collective. UserError: none is whole, or it was made with other data or another network.
    """
    root = folder.checkpoints
    found, refused = find_together(root)
    for line in refused if dist.is_main() else ():
        say(f"not used: {line}")
    if found is None:
        if refused:
            raise UserError(f"{root}: no checkpoint is whole; move the folder away to restart")
        if dist.is_main() and folder.metrics.exists():
            tell(f"there is no checkpoint in {root} yet: begins at step 0 again")
        return None
    changed = continuing.changes(read_manifest(found)["recipe"], setup.recipe)
    continuing.refuse(changed, found)
    state, extra = load(setup.engine, found)
    if state.data_hash != setup.data_hash:
        named = [f"\n  {change}" for change in changed if change.key.startswith("data.mix.")]
        if isinstance(setup.folder, LooseFolder):
            since = setup.folder.changes_since(state.data_hash)
            raise UserError(
                f"{found} was made with other images than data.train {setup.folder.path} holds"
                f"{f': {since}' if since else ''}; a run goes on with the same ones only: put them "
                "back, or choose another output_dir (start=RUN begins with its weights)"
            )
        raise UserError(
            f"{found} was made with other data than data.train {setup.folder.path} "
            f"(the index{', or a share of data.mix,' if named else ''} differs): use the same "
            f"shards, or another output_dir{''.join(named)}"
        )
    setup.stepper.restore(extra)
    if dist.is_main():
        tell(f"continues at step {state.step:,} from {found}")
        images = len(setup.folder)
        for line in continuing.lines(changed, setup.recipe, step=state.step, images=images):
            tell(f"  {line}")
        if setup.recipe.data.mode == "stream":
            tell("data.mode stream: with other images than without the interruption")
    return state
