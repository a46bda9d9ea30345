"""Jorge on one GPU (`python -m jorge_lab.cost.gpu`): is it right, does it wait, is it captured, what does it cost?"""
