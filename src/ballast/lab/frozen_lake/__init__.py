"""`ballast lab frozen-lake`: SFT, IFT, ORPO and DPO on a game whose optimal policy is known.

Importing it loads neither torch nor gymnasium nor matplotlib.
"""

from ballast.lab.frozen_lake.experiment import run_frozen_lake

__all__ = ["run_frozen_lake"]
