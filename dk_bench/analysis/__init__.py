"""Studies of what models do (erf, dynamics, taps) and how fast (bench), a folder each: study.py computes, figures.py
draws. The modules beside the folders are shared; begin with erf/study.py.
"""
