"""Studies of what models do (erf, dynamics, taps) and how fast they are (bench), a folder each: study.py computes,
figures.py draws. Modules beside the folders are shared. Begin with erf/study.py."""
